/* sudden_end exit|kill|abort [N]: N calls, then the end without atexit, without exit handlers, without a word. */
#include "truth.h"
#include <signal.h>

int main(int argc, char **argv) {
    t_require(argc > 1, "sudden_end exit|kill|abort");
    unsigned long count = argc > 2 ? t_parse(argv[2], 1234) : 1234;
    for (unsigned long i = 0; i < count; i++) {
        void *p = t_malloc(i);
        if (i % 2)
            t_free(p);
    }
    t_print("sudden_end");
    if (t_equal(argv[1], "kill"))
        kill(getpid(), SIGKILL);
    else if (t_equal(argv[1], "abort"))
        abort();
    _exit(7);
}
