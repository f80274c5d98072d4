/* malloc and free over every size class, each size bucket and both sides of each power of two. */
#include "truth.h"

static void one(size_t size) { t_free(t_malloc(size)); }

int main(int argc, char **argv) {
    int small = argc > 1 && t_equal(argv[1], "small");
    size_t limit = small ? 2000 : 70000;
    for (size_t size = 0; size <= limit; size += 7)
        one(size);
    for (int power = 2; power <= (small ? 14 : 26); power++)
        for (int around = -1; around <= 1; around++)
            one((1UL << power) + (size_t)around);
    t_print("sizes");
    return 0;
}
