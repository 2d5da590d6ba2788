"""Images of one channel and of several: which teachers read them."""

import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, make_model

from ultralytics_kd import KDError, outputs
from ultralytics_kd.outputs.weight_selection import select_weights
from ultralytics_kd.teachers import match_channels, open_teacher

CPU = torch.device("cpu")


class Mean:
    """A detector of another library, for colour images."""

    names = ("disc",)

    def teach(self, images):
        assert images.shape[1] == 3
        return [{"boxes": x.new_tensor([[0, 0, 9, 9]]), "probs": x.mean().view(1, 1)} for x in images]


def test_teacher_of_colour_images_sees_grey_ones_as_three_equal_channels():
    model, grey = make_model(TEACHER), torch.rand(2, 1, 64, 64)
    model.names = NAMES
    teachers = [open_teacher(model) for _ in range(2)]
    answers = []
    for teacher, channels in zip(teachers, (3, 1)):
        match_channels(teacher, channels)
        teacher.match(NAMES)
        answers.append(teacher.prepare(CPU)(grey.expand(-1, channels, -1, -1)))
    for name, branch in answers[0].branches.items():
        torch.testing.assert_close(answers[1].branches[name].scores, branch.scores)
        torch.testing.assert_close(answers[1].branches[name].boxes, branch.boxes)
    assert teachers[0].fingerprint() == teachers[1].fingerprint() == open_teacher(model).fingerprint()
    assert teachers[1].validator_model(3, NAMES)(grey)[0].shape[0] == 2
    student = make_model(STUDENT, ch=1)
    assert select_weights(student, teachers[1].original) and model.yaml["channels"] == 3  # the user's stays as it is


def test_every_convolution_that_reads_the_image_reads_grey_ones():
    class TwoStems(torch.nn.Module):
        """Reads the image twice, as YOLOv9e does."""

        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
            self.yaml = {"channels": 3}

        def forward(self, x):
            return self.one(x) + self.two(x)

    model, grey = TwoStems(), torch.rand(1, 1, 8, 8)
    expected = model(grey.expand(-1, 3, -1, -1))
    outputs.read_grey(model)
    torch.testing.assert_close(model(grey), expected)
    assert model.yaml["channels"] == 1


def test_teacher_of_another_library_is_given_three_equal_channels():
    teacher, grey = open_teacher(Mean()), torch.rand(2, 1, 64, 64)
    match_channels(teacher, 1)
    teacher.match({0: "disc"})
    torch.testing.assert_close(teacher.prepare(CPU)(grey).probs.flatten(), grey.mean((1, 2, 3)))


@pytest.mark.parametrize("reads, given", [(1, 3), (3, 6), (6, 1), (6, 3)])
def test_other_channels_are_refused_in_one_sentence(reads, given):
    model = make_model(TEACHER, ch=reads)
    model.names = NAMES
    with pytest.raises(KDError, match=rf"reads images of {reads} channel\(s\), and those of the data have {given}: "):
        match_channels(open_teacher(model), given)
