"""All benchmarks: `make bench`."""

import against_c
import against_peers
import networks
import on_gpu
import scaling
import work_precision

if __name__ == "__main__":
    for part in (against_c, against_peers, networks, on_gpu, scaling, work_precision):
        print(f"\n# {part.__doc__.strip().splitlines()[0]}\n")
        part.main()
