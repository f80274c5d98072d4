/* One malloc that crosses the default threshold. */
#include "truth.h"

int main(void) {
    void *p = t_malloc(1048576);
    t_require(t_mapped_bytes(p) == 1052672, "1 MiB did not become a mapping of 257 pages");
    t_print("trace_one");
    return 0;
}
