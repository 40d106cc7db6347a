"""CT from its scans: projectors, filtered backprojection, iterative methods, total variation, simulation."""
