"""The page of a survey of exits: answers of all methods, both exponents, ways out, exits seen."""

from .page import document

__all__ = ["document"]
