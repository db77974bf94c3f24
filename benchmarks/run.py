"""All benchmarks: `make bench`."""

import against_c
import against_peers
import networks
import on_gpu
import scaling
import training_overhead
import work_precision

if __name__ == "__main__":
    parts = (
        against_c,
        against_peers,
        networks,
        on_gpu,
        scaling,
        training_overhead,
        work_precision,
    )
    for part in parts:
        print(f"\n# {part.__doc__.strip().splitlines()[0]}\n")
        part.main()
