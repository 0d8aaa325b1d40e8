"""The 12 behaviours of text that are reasoning operations; see `text.py` for the others and the source."""

from __future__ import annotations

from vero_jax.evaluation.behaviours.behaviour import OPERATION, Behaviour, Example

OPERATIONS = (
    Behaviour(
        "context-alignment",
        OPERATION,
        "The arrangement of the reasoning is fitted to the kind of problem, or to its parts where these differ.",
        (
            "The kind of problem is recognised, and the arrangement (table, cases, steps) is chosen for it.",
            "The arrangement changes from one part to another because the parts ask for it.",
        ),
        "The same step-by-step scheme that any question would get.",
        (
            Example(
                "This is a comparison of two plans, so I put their costs side by side instead of going month by month.",
                True,
                "The arrangement is chosen for the kind of problem.",
            ),
            Example("Step 1: read the question. Step 2: compute. Step 3: answer.", False, "A scheme for anything."),
        ),
    ),
    Behaviour(
        "knowledge-structure-alignment",
        OPERATION,
        "The reasoning follows the structure of the field: its concepts, distinctions, conventions and usual order.",
        (
            "A framework or a procedure of the field gives the reasoning its parts.",
            "Terms of the field are used for the distinctions for which experts use them.",
        ),
        "A technical word in passing, or arithmetic.",
        (
            Example(
                "By the mnemonic for X-rays: airways clear, bones intact, heart enlarged, diaphragm normal.",
                True,
                "The order in which radiologists look.",
            ),
            Example("The X-ray looks strange on the right.", False, "No structure of the field."),
        ),
    ),
    Behaviour(
        "verification",
        OPERATION,
        "A result or step is checked against something: facts, conditions, another way, or a second look.",
        (
            "A result is put back into the conditions, computed in another way, or counted again.",
            "A claim is compared with the evidence to confirm or refute it.",
        ),
        "'Let me check' without a check, or a computation done once.",
        (
            Example("Check: 4 x 6 = 24, and the table says 24 as well.", True, "The result is compared with a source."),
            Example("4 x 6 = 24. I have checked it.", False, "A check is claimed, but not made."),
        ),
    ),
    Behaviour(
        "selective-attention",
        OPERATION,
        "Relevant details are picked out, and others set aside on purpose.",
        (
            "It is said what matters for the question, or what can be ignored.",
            "Distracting details are named and left out.",
        ),
        "Reading details one after another without a choice.",
        (
            Example(
                "The colours do not matter here; only the legend's second entry does.", True, "A choice of details."
            ),
            Example("The bar is red, the axis is black, the title is bold.", False, "Details without a choice."),
        ),
    ),
    Behaviour(
        "adaptive-detail-management",
        OPERATION,
        "The level of detail changes as needed: closer where it matters, coarser where it does not.",
        (
            "The reasoning goes from an overview into one part in more detail, or back to a summary, on purpose.",
            "Details are rounded, bundled or skipped because a coarse view is enough.",
        ),
        "The same level of detail throughout.",
        (
            Example(
                "Overall it is a street. Zooming in on the sign: its second line says 'Rue 4'. Back to the street...",
                True,
                "From overview to detail and back.",
            ),
            Example("A car, a sign, a tree, a man.", False, "One level of detail."),
        ),
    ),
    Behaviour(
        "decomposition-and-integration",
        OPERATION,
        "A problem is divided into parts that are solved one by one, and the results are put together.",
        (
            "Parts are named, worked on separately, and their results joined into the answer.",
            "A long condition is split into several, which are then combined.",
        ),
        "Parts whose results are never joined, or a single step.",
        (
            Example(
                "Left half: 5 birds. Right half: 3 birds. Together: 8.",
                True,
                "Two parts and their sum.",
            ),
            Example("There are 8 birds.", False, "No parts."),
        ),
    ),
    Behaviour(
        "representational-restructuring",
        OPERATION,
        "The problem is put in another form or seen in another way, so that it becomes easier.",
        (
            "It is reformulated: words as an equation, a picture as a grid or graph, one question as another.",
            "A first view of the problem is replaced by a different one.",
        ),
        "A paraphrase in the same form.",
        (
            Example("I see the maze as a graph: rooms are nodes, doors are edges.", True, "Another form."),
            Example("In other words, we look for the way out.", False, "A paraphrase."),
        ),
    ),
    Behaviour(
        "pattern-recognition",
        OPERATION,
        "A regularity or a known structure is found in what is given.",
        (
            "A rule, trend, symmetry or repetition is stated from several cases.",
            "The task is recognised as an instance of a known kind.",
        ),
        "A single value or object that is recognised.",
        (
            Example("Each row has one dot more than the row before.", True, "A rule from several cases."),
            Example("The first row has one dot.", False, "One case."),
        ),
    ),
    Behaviour(
        "abstraction",
        OPERATION,
        "A general statement is drawn from particulars, or particulars are replaced by something general.",
        (
            "A general rule, class or variable stands for the concrete cases.",
            "What several cases have in common is separated from what differs.",
        ),
        "A known formula applied to numbers.",
        (
            Example(
                "Whatever the shop, the price per piece is total over number; call it p = t / n.",
                True,
                "The cases are replaced by a general relation.",
            ),
            Example("Shop A: 10 / 5 = 2.", False, "A concrete case."),
        ),
    ),
    Behaviour(
        "forward-chaining",
        OPERATION,
        "The reasoning goes from what is given, step by step, to the goal.",
        (
            "Known facts give a new fact, which gives the next one, until the answer.",
            "Consequences of the given facts are worked out, at least two in a row.",
        ),
        "One single inference, or reasoning that starts at the goal.",
        (
            Example("x = 3 gives y = 6. With y = 6, z = 10. So the answer is 10.", True, "A chain from the givens."),
            Example("The chart says 10.", False, "Nothing is inferred."),
        ),
    ),
    Behaviour(
        "backward-chaining",
        OPERATION,
        "The reasoning goes from the goal back to what would have to hold for it.",
        (
            "'To get X, I need Y; to get Y, I need Z', until something known.",
            "An option or a result is assumed, and what it would require is compared with the givens.",
        ),
        "The goal repeated, or steps that go from the givens only.",
        (
            Example(
                "To know the area I need the height; for the height I need the angle, and the angle is given.",
                True,
                "From the goal to a given.",
            ),
            Example("The angle is 30, so the height is 2, so the area is 6.", False, "From the givens."),
        ),
    ),
    Behaviour(
        "backtracking",
        OPERATION,
        "A path is given up, and the reasoning goes back to an earlier point to try another one.",
        (
            "A step or an assumption is withdrawn and replaced ('wait, that is wrong, instead...').",
            "A dead end is named, and another path is taken from an earlier point.",
        ),
        "A check that confirms, or 'wait' after which the same path goes on.",
        (
            Example(
                "So it is 12. Wait, I counted the corner twice. Back to the second row: it has 3, so it is 11.",
                True,
                "A step is withdrawn and done differently.",
            ),
            Example("Wait, let me look again. Yes, it is 12.", False, "Nothing is given up."),
        ),
    ),
)
