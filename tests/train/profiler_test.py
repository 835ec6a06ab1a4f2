"""A recording of some steps."""


def test_a_profile_of_some_steps(train, tmp_path):
  run = train(tmp_path, 4, profile_steps=(2, 3))
  assert any('profile of steps 2 to 3' in line for line in run.lines)
  found = [path.name for path in (tmp_path / 'profile').rglob('*')]
  assert any(name.endswith('.xplane.pb') for name in found)
  assert any(name.endswith('.trace.json.gz') for name in found)
