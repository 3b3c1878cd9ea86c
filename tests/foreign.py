"""Small tokenizers of others, the text of a module."""

LEARNER = """train-generator far-tiny --data store --run run --train.steps 2 --train.batch 2 --train.device cpu
    --model.width 32 --model.depth 1 --model.heads 2 --model.mlp-multiple 16 --model.head-depth 1"""
"""The command of a tiny generator on the codes of a store."""
TOY = '''
import torch
import torch.nn.functional as F

class Grey:
    """Shades of grey, one for each 4 x 4 pixels."""
    codebook_sizes = 8
    image_size = 16

    def encode(self, images):
        means = F.avg_pool2d(images.mean(1), 4)
        return ((means + 1) * 4).long().clamp(0, 7)

    def decode(self, codes):
        return F.interpolate((codes + 0.5) / 4 - 1, scale_factor=4.0).expand(-1, 3, -1, -1)

class Means(torch.nn.Module):
    """The mean colour of 4 x 4 pixels: no codes."""
    image_size = 16
    downsampling = 4

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, images):
        return F.avg_pool2d(images, 4) * self.scale

    def decode(self, latents):
        return F.interpolate(latents / self.scale, scale_factor=4.0)

class Two(Grey):
    codebook_sizes = (8, 8)
    def encode(self, images):
        return torch.stack([super().encode(images)] * 2, 1)
    def decode(self, codes):
        return super().decode(codes[:, :1])

class NoSizes(Grey):
    codebook_sizes = ()

class Small(Grey):
    codebook_sizes = 2

class Flat(Grey):
    def encode(self, images):
        return super().encode(images).flatten(1)

class WrongWay(Means):
    def decode(self, latents):
        return latents

class Odd(Means):
    downsampling = 8

class Failing(Grey):
    def encode(self, images):
        raise ValueError("no such luck")

grey = Grey()
means = Means
number = 3

def two():
    return Two()

def broken():
    raise RuntimeError("cannot be built")
'''
