"""The paper's tables and figures as studies: rows that differ in what they declare, measured under one protocol."""
