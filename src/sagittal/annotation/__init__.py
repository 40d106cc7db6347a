"""Annotation: what an expert should look at next, and how long it will take."""

from sagittal.annotation.bootstrap import BySubject, Draw, out_of_bag_mean
from sagittal.annotation.cover import Cover, cosine_similarity, cover, cover_within, k_centre
from sagittal.annotation.effort import (
    CaseEffort,
    Effort,
    Saving,
    campaign_saving,
    correction_effort,
    expected_effort,
)
from sagittal.annotation.likeness import Likeness, likeness
from sagittal.annotation.minutes import LoggedMinutes, MinutesModel, fit_minutes, total_minutes
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
    "CaseEffort",
    "Choice",
    "Cover",
    "Draw",
    "Effort",
    "Likeness",
    "LoggedMinutes",
    "Method",
    "MinutesModel",
    "Pick",
    "Saving",
    "Unit",
    "UnitRegion",
    "campaign_saving",
    "correction_effort",
    "cosine_similarity",
    "cover",
    "cover_within",
    "ensemble_spread",
    "expected_effort",
    "fit_minutes",
    "k_centre",
    "likeness",
    "mean_within",
    "out_of_bag_mean",
    "predictive_entropy",
    "regions",
    "select",
    "thumbnail",
    "total_minutes",
]
