"""All benchmarks: `make bench`."""

import against_c
import against_peers
import networks
import scaling
import training_overhead
import work_precision

if __name__ == "__main__":
    for part in (against_c, against_peers, networks, scaling, training_overhead, work_precision):
        print(f"\n# {part.__doc__.strip().splitlines()[0]}\n")
        part.main()
