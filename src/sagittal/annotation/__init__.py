"""Annotation: what an expert should look at next, and how long it will take."""

from sagittal.annotation.bootstrap import BySubject, Draw, out_of_bag_mean
from sagittal.annotation.cover import Cover, cosine_similarity, cover, cover_within, k_centre
from sagittal.annotation.selection import Budget, Candidate, Choice, Method, Pick, select
from sagittal.annotation.uncertainty import (
    Unit,
    UnitRegion,
    ensemble_spread,
    mean_within,
    predictive_entropy,
    regions,
    thumbnail,
)

__all__ = [
    "Budget",
    "BySubject",
    "Candidate",
    "Choice",
    "Cover",
    "Draw",
    "Method",
    "Pick",
    "Unit",
    "UnitRegion",
    "cosine_similarity",
    "cover",
    "cover_within",
    "ensemble_spread",
    "k_centre",
    "mean_within",
    "out_of_bag_mean",
    "predictive_entropy",
    "regions",
    "select",
    "thumbnail",
]
