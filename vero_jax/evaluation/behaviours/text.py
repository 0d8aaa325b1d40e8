"""The 28 behaviours of text: the elements of Kargupta et al. 2025 (arXiv 2511.16660), with their names and groups.

Definitions, criteria and examples are in our own words, for the yes-or-no question about a whole trace.
"""

from __future__ import annotations

from vero_jax.evaluation.behaviours.behaviour import CONTROL, INVARIANT, REPRESENTATION, Behaviour, Example
from vero_jax.evaluation.behaviours.operations import OPERATIONS

_INVARIANTS = (
    Behaviour(
        "logical-coherence",
        INVARIANT,
        "The steps agree with each other: conclusions follow from what was stated, and contradictions are resolved.",
        (
            "Conclusions are tied to their reasons, and none of them contradicts another.",
            "A contradiction is noticed and removed before the reasoning goes on.",
        ),
        "An answer without steps, or steps of which one contradicts another and is left standing.",
        (
            Example(
                "All bars left of 2010 are blue. This bar is left of 2010, so it is blue.",
                True,
                "The conclusion follows from both statements.",
            ),
            Example(
                "The box is empty. I take the ball from the box, so the answer is B.",
                False,
                "A ball cannot come from an empty box, and this is left standing.",
            ),
        ),
    ),
    Behaviour(
        "compositionality",
        INVARIANT,
        "A complex idea is built from simpler ones: its meaning follows from the parts and how they are joined.",
        (
            "Several simple facts or conditions are joined by stated rules into one larger claim.",
            "A complex notion is explained by its parts and the relation between them.",
        ),
        "A list of facts that are never joined into anything.",
        (
            Example(
                "'Large red cubes' means: cubes, of these the red ones, of these the large ones. That leaves two.",
                True,
                "The meaning is built up from three simple conditions.",
            ),
            Example("There is a cube. There is a ball. It is sunny.", False, "The facts stay unconnected."),
        ),
    ),
    Behaviour(
        "productivity",
        INVARIANT,
        "Something new is made from known elements: an idea, a case or a way to a solution that was not given.",
        (
            "Known concepts or rules are recombined in a way that is not the routine one.",
            "Several possibilities of the reasoner's own are generated, not picked from given options.",
        ),
        "Routine use of a known formula or procedure, or choosing among given options.",
        (
            Example(
                "No formula fits this shape. What if I double it by a mirror image? Then it is half of a square.",
                True,
                "A construction of the reasoner's own.",
            ),
            Example("Area = 3 x 4 = 12.", False, "A routine formula."),
        ),
    ),
    Behaviour(
        "conceptual-level-processing",
        INVARIANT,
        "The reasoning works with ideas and relations, not only with words, shapes or numbers on the surface.",
        (
            "A principle or concept is named and decides what is done.",
            "Things are compared by their meaning or role, not by how they look or are spelled.",
        ),
        "Repeating or rearranging what is on the surface, or computing without a word on what it means.",
        (
            Example(
                "This is a question of conservation of energy, so only the two heights matter.",
                True,
                "A principle decides which facts count.",
            ),
            Example("The numbers are 5, 7 and 9. 5 + 7 + 9 = 21.", False, "Only numbers on the surface."),
        ),
    ),
)

_CONTROLS = (
    Behaviour(
        "self-awareness",
        CONTROL,
        "The reasoner judges its own knowledge or ability: what it knows, is unsure of, or cannot tell.",
        (
            "It says how sure it is, or what it does not know or cannot make out.",
            "It names an assumption of its own as an assumption, or a limit of what it can do.",
        ),
        "Uncertainty in the world itself (a chance of rain), or polite phrases.",
        (
            Example("I can't read this label with certainty; I assume that it says 40.", True, "A limit and a guess."),
            Example("The label says 40.", False, "No word on the reasoner's own knowledge."),
        ),
    ),
    Behaviour(
        "context-awareness",
        CONTROL,
        "What the situation asks for is noticed: the wanted form, the purpose, the conditions or the person who asks.",
        (
            "The question's wording, conditions or wanted format are examined and decide what is done.",
            "The setting (exam, screen, conversation, real scene) is used to settle what is meant.",
        ),
        "Repeating the question without drawing anything from it.",
        (
            Example(
                "The question asks for the first year in which sales fell, not for the lowest, so I look for a drop.",
                True,
                "The wording decides what is looked for.",
            ),
            Example("The question is about sales. Sales in 2010 are 5.", False, "It is only repeated."),
        ),
    ),
    Behaviour(
        "strategy-selection",
        CONTROL,
        "A way of proceeding is chosen on purpose.",
        (
            "An approach is named before it is used, with a reason or against another one.",
            "The approach is changed because another one fits better.",
        ),
        "Carrying out steps without a word on the choice; 'let me think step by step' alone.",
        (
            Example(
                "I could count every tile, but it is quicker to multiply rows by columns, so I do that.",
                True,
                "Two approaches are weighed.",
            ),
            Example("First row 4, second row 4, third row 4: 12.", False, "Steps without a choice."),
        ),
    ),
    Behaviour(
        "goal-management",
        CONTROL,
        "Goals are set, ordered, followed or revised in the course of the reasoning.",
        (
            "Subgoals are stated ('first I need X, then Y') and taken up later.",
            "It is checked what is still to be done, or a goal is dropped or changed.",
        ),
        "The task's goal repeated once, without subgoals or following up.",
        (
            Example(
                "I need the radius and the height. The radius is 3. What is missing is the height.",
                True,
                "Two subgoals are followed, and the open one is named.",
            ),
            Example("I need the volume. It is 12.", False, "One goal, nothing to manage."),
        ),
    ),
    Behaviour(
        "self-evaluation",
        CONTROL,
        "The reasoner judges how good its own progress, approach or result is.",
        (
            "A verdict on its own reasoning ('this is too complicated', 'that was careless', 'this works well').",
            "The quality or plausibility of its result is judged.",
        ),
        "A judgement about the task or its options, or a repeated computation without a verdict.",
        (
            Example(
                "Hmm, my estimate seems far too high for a room of this size.",
                True,
                "The reasoner's result is found implausible.",
            ),
            Example("Option A is too high, because the room is 3 m.", False, "A verdict on an option."),
        ),
    ),
)

_REPRESENTATIONS = (
    Behaviour(
        "sequential-organization",
        REPRESENTATION,
        "The reasoning is arranged as steps in an order, each after the one before.",
        (
            "Steps are numbered or joined by 'first', 'then', 'next', 'finally'.",
            "Each step visibly takes up the result of the one before.",
        ),
        "One single step, or remarks whose order does not matter.",
        (
            Example("First I read the axis. Then I find 2015. Finally I read off 30.", True, "Three ordered steps."),
            Example("It is 30.", False, "No steps."),
        ),
    ),
    Behaviour(
        "hierarchical-organization",
        REPRESENTATION,
        "The reasoning is arranged in levels: wholes and parts, kinds and members, main points and sub-points.",
        (
            "Something is divided into parts that are themselves divided or described.",
            "Kinds and their members, or main and sub-points, are told apart.",
        ),
        "A flat list on one level.",
        (
            Example(
                "The page has a header and a body; in the body are two columns; in the left one is the table.",
                True,
                "Three levels of parts.",
            ),
            Example("I see a table, a title and a logo.", False, "A flat list."),
        ),
    ),
    Behaviour(
        "network-organization",
        REPRESENTATION,
        "Things are linked by several relations that cross each other, not along one line or tree.",
        (
            "At least three things are related to each other in more than one way.",
            "Mutual influence, cross-references or loops between things are described.",
        ),
        "One chain, one tree, or a single pair.",
        (
            Example(
                "A feeds B and C, C feeds back into A, and B depends on C as well.",
                True,
                "Crossing links and a loop.",
            ),
            Example("A leads to B, and B leads to C.", False, "A chain."),
        ),
    ),
    Behaviour(
        "ordinal-organization",
        REPRESENTATION,
        "Things are ranked along some quantity or preference.",
        (
            "Three or more things are put in order, or the largest, smallest or best is found by comparing them all.",
            "Options are ranked by likelihood or quality.",
        ),
        "Two numbers in a computation, or steps in an order of time.",
        (
            Example("Sorted by height: C (9), A (7), B (4). So A is second.", True, "A ranking."),
            Example("A is 7 and B is 4, together 11.", False, "Nothing is ranked."),
        ),
    ),
    Behaviour(
        "causal-organization",
        REPRESENTATION,
        "Things are related as causes and effects.",
        (
            "It is said what brings something about, or what would happen if something were changed.",
            "A mechanism explains an observation.",
        ),
        "'So' and 'because' that give a reason for a conclusion, not a cause in the world.",
        (
            Example(
                "The dam holds the water back, which raises the level and floods the meadow.",
                True,
                "A chain of causes and effects.",
            ),
            Example("It has three sides, so it is a triangle.", False, "A reason, not a cause."),
        ),
    ),
    Behaviour(
        "temporal-organization",
        REPRESENTATION,
        "Events or states are placed in time: before, after, during, how long.",
        (
            "Events of the task are ordered or dated, or durations are compared.",
            "States of the same thing at different times are told apart.",
        ),
        "The order of the reasoner's own steps ('first I read the axis').",
        (
            Example(
                "The picture with the bud comes before the one with the flower, the fruit comes last.",
                True,
                "Events in time.",
            ),
            Example("First I count the red ones, then the blue ones.", False, "The order of the reasoner's steps."),
        ),
    ),
    Behaviour(
        "spatial-organization",
        REPRESENTATION,
        "Things are arranged by their places: position, direction, distance, containment.",
        (
            "Places are related ('left of', 'behind', 'inside', 'two rows below') and the relations are used.",
            "A layout, a map or coordinates carry the reasoning.",
        ),
        "A place mentioned once in passing.",
        (
            Example(
                "The cup is left of the plate and the plate left of the jug, so the cup is left of the jug.",
                True,
                "Relations of place are combined.",
            ),
            Example("In this picture I see a cup.", False, "No relations of place."),
        ),
    ),
)

TEXT = (*_INVARIANTS, *_CONTROLS, *_REPRESENTATIONS, *OPERATIONS)
