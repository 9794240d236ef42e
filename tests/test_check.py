"""The checkers' common part: what it accepts, what it says, and what it never shows."""

import pytest
import torch

from pwl_lib import check
from pwl_lib.check._exercise import Case, exercise, near, random_tensor


@exercise(hint="think of a square", more="multiply the number by itself")
def square():
    """The square of each number of a vector."""
    for _ in range(5):
        x = random_tensor(3)
        yield Case((x,), x * x, mistakes={"that is the double, not the square": 2 * x})
    yield Case((torch.zeros(3),), torch.zeros(3), where="at zero")


@exercise(hint="the Jacobian of a linear map", more="is its matrix")
def jacobian():
    """The Jacobian of x -> A x, in numerator layout."""
    for shape in ((3, 3), (2, 3)):
        A = random_tensor(*shape)
        yield Case((A,), A)


@exercise(hint="a set", more="of slopes")
def kink():
    """Any subgradient of |x| at 0."""
    yield Case((0.0,), "a number from -1 to 1", accept=lambda g: -1 <= g <= 1, where="at the kink x = 0")


def test_a_right_answer_is_told_where_it_was_tried():
    assert square(lambda x: x**2) == "right: 5 at a random input, 1 at zero"


@pytest.mark.parametrize("slope", [-1, -0.5, 0.0, torch.tensor(1.0)])
def test_every_element_of_a_set_of_right_answers_passes(slope):
    assert kink(lambda x: slope).startswith("right")


@pytest.mark.parametrize("slope", [1.5, -2, float("nan"), None, "0"])
def test_an_answer_outside_the_set_fails(slope):
    with pytest.raises(check.WrongAnswer, match="a number from -1 to 1"):
        kink(lambda x: slope)


def test_a_blank_answer_is_called_blank():
    def blank(x):
        raise NotImplementedError

    with pytest.raises(check.WrongAnswer, match="the answer is still blank"):
        square(blank)


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (lambda x: 2 * x, "that is the double, not the square"),
        (lambda x: -x * x, "the sign is wrong"),
        (lambda x: x * x / 3, "3 times too small: a mean over dimension 0"),
        (lambda x: x * x * 3, "3 times too large: a sum over dimension 0"),
        (lambda x: (x * x).sum(), r"the shape is \(\), and \(3,\) was wanted"),
        (lambda x: x * x / 0 * 0, "it holds NaN"),
        (lambda x: x.undefined, "AttributeError"),
    ],
)
def test_a_wrong_answer_is_told_the_likely_mistake(answer, diagnosis):
    with pytest.raises(check.WrongAnswer, match=diagnosis) as error:
        square(answer)
    report = str(error.value)
    assert "tried:" in report
    assert "came:" in report
    assert "wanted:" in report
    assert "multiply" not in report


@pytest.mark.parametrize("answer", [lambda A: A.T, lambda A: A.T.tolist()])
def test_a_transposed_jacobian_is_named_with_its_layout(answer):
    with pytest.raises(check.WrongAnswer, match="denominator layout instead of numerator layout"):
        jacobian(answer)


def test_an_answer_that_writes_into_its_argument_cannot_move_the_target():
    with pytest.raises(check.WrongAnswer):
        square(lambda x: x.zero_())


def test_the_reader_s_random_numbers_are_not_moved():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    square(lambda x: x**2)
    assert torch.equal(torch.rand(1), wanted)


def test_inputs_are_fresh_each_time():
    seen = []
    for _ in range(2):
        square(lambda x: seen.append(x.clone()) or x**2)
    assert not torch.equal(seen[0], seen[6])


def test_hints_come_in_two_levels_and_no_more():
    assert square.hint() == square.hint(1) == "think of a square"
    assert square.hint(2) == "multiply the number by itself"
    with pytest.raises(ValueError, match="level must be 1 or 2, got 3"):
        square.hint(3)


def test_an_answer_that_was_already_called_is_refused():
    with pytest.raises(TypeError, match="answer must be a function, got Tensor"):
        square(torch.zeros(3))


def test_the_report_stands_alone_in_a_notebook():
    assert check.WrongAnswer("not yet\n  tried: 1")._render_traceback_() == ["not yet", "  tried: 1"]


def test_near_compares_shapes_types_and_every_number():
    assert near((1.0, torch.ones(2)), (1, torch.ones(2)))
    assert not near((1.0,), (1.0, 2.0))
    assert not near(torch.ones(2, 1), torch.ones(2))
    assert not near(1, True)
    assert near(True, True)
    assert not near(float("nan"), float("nan"))


def test_an_unknown_chapter_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"its chapters are .*subgradients"):
        check.topology


# --- all exercises of the book --------------------------------------------------------------------

CHAPTERS = {
    chapter: [thing for thing in vars(getattr(check, chapter)).values() if isinstance(thing, check.Exercise)]
    for chapter in check.__all__
    if chapter.islower()
}
each_exercise = pytest.mark.parametrize(
    "any_exercise",
    [pytest.param(one, id=f"{chapter}-{one.__name__}") for chapter, many in CHAPTERS.items() for one in many],
)


def test_every_chapter_has_at_least_five_exercises():
    assert min(map(len, CHAPTERS.values())) >= 5, CHAPTERS


@each_exercise
def test_a_blank_is_called_a_blank(any_exercise):
    def blank(*arguments):
        raise NotImplementedError("your answer here")

    with pytest.raises(check.WrongAnswer, match="the answer is still blank"):
        any_exercise(blank)


@each_exercise
@pytest.mark.parametrize("value", [None, "text", [], torch.zeros(0), torch.zeros(7, 7, 7), (1, 2, 3, 4)], ids=repr)
def test_an_answer_of_another_kind_is_wrong_and_no_crash(any_exercise, value):
    with pytest.raises(check.WrongAnswer, match="not yet"):
        any_exercise(lambda *arguments: value)


@each_exercise
def test_there_are_a_sentence_and_two_hints(any_exercise):
    assert len(any_exercise.__doc__.splitlines()) == 1
    first, second = any_exercise.hint(1), any_exercise.hint(2)
    assert first != second
    assert min(len(first), len(second)) > 20


def test_two_mistakes_that_come_to_the_same_are_both_named():
    @exercise(hint="a", more="b")
    def of_one():
        """The square of 3."""
        yield Case((3.0,), 9.0, mistakes={"that is the double": 6.0, "that is a cube": 27.0, "3 is added": 3.0 + 3.0})

    with pytest.raises(check.WrongAnswer, match=r"likely: that is the double; or 3 is added$"):
        of_one(lambda x: 2 * x)
