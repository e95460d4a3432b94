from autoclip.policies import Fixed, NoClip


def test_bounds_hold_for_the_constant_too():
    assert Fixed(5.0, max_threshold=2.0).threshold() == 2.0
    assert Fixed(5.0, min_threshold=7.0).threshold() == 7.0
    assert NoClip(max_threshold=2.0).threshold() == 2.0
