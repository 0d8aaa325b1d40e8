"""All 34 behaviours in the order of tables: the 28 of text, then the 6 visual ones; and their labels in pictures."""

from __future__ import annotations

from vero_jax.evaluation.behaviours.behaviour import Behaviour
from vero_jax.evaluation.behaviours.text import TEXT
from vero_jax.evaluation.behaviours.visual import VISUAL_BEHAVIOURS

BEHAVIOURS: tuple[Behaviour, ...] = (*TEXT, *VISUAL_BEHAVIOURS)
LABELS = {
    "logical-coherence": "Logical Coherence",
    "compositionality": "Compositionality",
    "productivity": "Productivity",
    "conceptual-level-processing": "Conceptual-Level Proc.",
    "self-awareness": "Self-Awareness",
    "context-awareness": "Context Awareness",
    "strategy-selection": "Strategy Selection",
    "goal-management": "Goal Management",
    "self-evaluation": "Self-Evaluation",
    "sequential-organization": "Sequential Organization",
    "hierarchical-organization": "Hierarchical Org.",
    "network-organization": "Network Organization",
    "ordinal-organization": "Ordinal Organization",
    "causal-organization": "Causal Organization",
    "temporal-organization": "Temporal Organization",
    "spatial-organization": "Spatial Organization",
    "context-alignment": "Context Alignment",
    "knowledge-structure-alignment": "Knowledge Struct. Align.",
    "verification": "Verification",
    "selective-attention": "Selective Attention",
    "adaptive-detail-management": "Adaptive Detail Mgmt.",
    "decomposition-and-integration": "Decomp. & Integration",
    "representational-restructuring": "Repr. Restructuring",
    "pattern-recognition": "Pattern Recognition",
    "abstraction": "Abstraction",
    "forward-chaining": "Forward Chaining",
    "backward-chaining": "Backward Chaining",
    "backtracking": "Backtracking",
    "arithmetic-calculation": "Arithmetic Calculation",
    "mental-imagery-simulation": "Mental Imagery Sim.",
    "perception-then-reasoning": "Perception-then-Reas.",
    "systematic-regional-synthesis": "Syst. Regional Synth.",
    "visual-foraging": "Visual Foraging",
    "visual-reference-or-grounding": "Visual Ref. / Grounding",
}
"""As in the heat maps of the Vero paper (arXiv 2604.04917v3, figures 11 and D3), so that pictures can be compared."""
