"""The 6 visual behaviours that the Vero paper (arXiv 2604.04917) names. Definitions and examples are our own."""

from __future__ import annotations

from vero_jax.evaluation.behaviours.behaviour import VISUAL, Behaviour, Example

VISUAL_BEHAVIOURS = (
    Behaviour(
        "arithmetic-calculation",
        VISUAL,
        "Numbers that were read or counted in the picture are computed with, step by step.",
        (
            "A computation is written out with its operands and its result.",
            "Several values are combined by an operation that is named (a difference, a mean, a share).",
        ),
        "A number that is only read off, or a result without its computation.",
        (
            Example(
                "The blue bar is at 45 and the orange one at 30, so the difference is 45 - 30 = 15.",
                True,
                "Operands, operation and result.",
            ),
            Example("The blue bar is clearly higher, at about 45.", False, "A value is read, nothing is computed."),
            Example("So 15 % of them are missing.", False, "A result without a computation."),
        ),
    ),
    Behaviour(
        "mental-imagery-simulation",
        VISUAL,
        "A scene or object is imagined to change: turned, folded, moved, seen from elsewhere, or continued in time.",
        (
            "A rotation, reflection, folding, assembly or motion is carried out in words, with what it leads to.",
            "It is imagined what somebody at another place would see, or what happens next.",
        ),
        "A description of what is there, without any imagined change.",
        (
            Example(
                "If I fold the right flap over, the star ends up next to the circle, pointing down.",
                True,
                "A folding is imagined, with its outcome.",
            ),
            Example(
                "From where the driver sits, the tree would be on the left.",
                True,
                "Another point of view is imagined.",
            ),
            Example("The star is on the right flap and the circle at the top.", False, "Only what is there."),
        ),
    ),
    Behaviour(
        "perception-then-reasoning",
        VISUAL,
        "What is seen is stated first, and conclusions are then drawn from these statements.",
        (
            "A part that describes the picture comes before a part that infers from it, and the second uses the first.",
            "Values or relations are first read off and listed, then worked with.",
        ),
        "A description without a conclusion, or a conclusion without any description.",
        (
            Example(
                "I see two circuits: the upper one has a switch that is open, the lower one is closed. Current needs a "
                "closed loop, so only the lower lamp is lit.",
                True,
                "First what is seen, then what follows.",
            ),
            Example("Only closed circuits carry current, so the answer is B.", False, "Nothing seen is stated."),
            Example("There are two circuits with a lamp each and a switch.", False, "No conclusion."),
        ),
    ),
    Behaviour(
        "systematic-regional-synthesis",
        VISUAL,
        "The picture is worked through region by region in some order, and the findings are put together.",
        (
            "At least three regions (corners, rows, panels, quadrants) are visited in an order, and a summary follows.",
            "All panels or rows are gone through before the conclusion about the whole.",
        ),
        "One or two regions, or regions whose findings are never put together.",
        (
            Example(
                "Top row: 3 stars. Middle row: 2. Bottom row: 4. Over the whole picture that makes 9.",
                True,
                "Three regions in order and their sum.",
            ),
            Example(
                "Panel (a) rises, (b) is flat, (c) falls; so only (a) fits the text.",
                True,
                "All panels, then the conclusion.",
            ),
            Example("In the top left corner there is a star.", False, "One region."),
        ),
    ),
    Behaviour(
        "visual-foraging",
        VISUAL,
        "A target is searched for: candidates are looked at, rejected or accepted, and the search goes on elsewhere.",
        (
            "Several places or candidates are examined for the same target, and at least one is rejected.",
            "The search is said to go on, or is narrowed down, until the target is found or declared absent.",
        ),
        "A target that is named at once.",
        (
            Example(
                "A red bag... near the bench there is a bag, but it is brown. By the door I see only umbrellas. Behind "
                "the column: there it is.",
                True,
                "Candidates are rejected until the target is found.",
            ),
            Example("The red bag is behind the column.", False, "No search."),
            Example("By the bench is a bag, by the door are umbrellas.", False, "Nothing is searched for."),
        ),
    ),
    Behaviour(
        "visual-reference-or-grounding",
        VISUAL,
        "Statements are tied to places in the picture: by coordinates, marks, or a reference that picks out one thing.",
        (
            "Coordinates, a box or a point are given for something.",
            "A claim names where in the picture its evidence is ('the label under the third bar says 12').",
        ),
        "General statements about the picture, such as 'in the image' or 'as shown'.",
        (
            Example("The button at [412, 88, 470, 110] says 'Save'.", True, "A box."),
            Example("The label under the third bar from the left says 12.", True, "The evidence has a place."),
            Example("As the image shows, sales are rising.", False, "No place."),
        ),
    ),
)
