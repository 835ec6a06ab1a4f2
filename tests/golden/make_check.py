"""Writes what transformers answers `atm check` about folders of tests/golden.

python tests/golden/make_check.py, with the extras hf and tokenizers: each
folder of PEERS gets check/NAME, which tests copy in place of a process that
runs transformers.
"""

import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 3  # prompts that are computed
PEERS = {'blenderbot': 'blenderbot_generate'}


def main() -> None:
  from atm.evals import folder_check, peer_process

  for name, source in PEERS.items():
    place = os.path.join(HERE, 'check', name)

    def ask_peer(folder, say, place=place):
      failure = peer_process.ask_peer(folder, say)
      shutil.rmtree(place, ignore_errors=True)
      os.makedirs(place)
      for file in sorted(os.listdir(folder)):
        if file.endswith('.npy') or file == 'answer.json':
          shutil.copy(os.path.join(folder, file), place)
      return failure

    check = folder_check.FolderCheck(
      os.path.join(HERE, source), limit=LIMIT, ask_peer=ask_peer
    )
    if not check.run():
      sys.exit(f'{source} differs')


if __name__ == '__main__':
  main()
