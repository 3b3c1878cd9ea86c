"""Studies, understanding, report and quickstart: clients of the library, which nothing but their commands imports."""
