/*
 * crowd N: N children, each under a hostile name, each with one allocation that crosses the threshold; a line says how many
 * there are, and all end when the input closes. A child whose parent is killed ends too.
 */
#include "truth.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* Terminal, line and label syntax, and bytes that are no UTF-8, with and without a number to tell them apart. */
static const char *const names[] = {
    "\x1b[2J\x1b[31m",  "a\nb 1\nc", "\r\n\r\n{}", "\xff\xfe\x80\xc0", "\"} 1\nup{a=\"", "b\\s\\\\\"", "<script>\x07",
    "\xe2\x80\xae" "abc", "\x7f\t\x0b", "\xc2\x9b" "31m",  "%s%n%x",       "", "{{.}}${x}`id`", "\xf0\x9f\x92", "\xed\xa0\x80", " ",
};

int main(int argc, char **argv) {
    size_t count = argc > 1 ? t_parse(argv[1], 10) : 10;
    pid_t parent = getpid();
    /* Its children are told to end as a group. */
    setpgid(0, 0);
    int ready[2];
    t_require(pipe(ready) == 0, "a pipe");
    size_t made = 0;
    for (; made < count; made++) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            char name[64];
            const char *pattern = names[made % (sizeof names / sizeof *names)];
            if (made < 4 * sizeof names / sizeof *names)
                snprintf(name, sizeof name, "%s", pattern);
            else
                snprintf(name, sizeof name, "%zx%s", made, pattern);
            prctl(PR_SET_NAME, name);
            free(malloc(1 << 20));
            t_write(ready[1], ".", 1);
            for (;;)
                pause();
        }
    }
    char byte;
    for (size_t i = 0; i < made; i++)
        t_require(read(ready[0], &byte, 1) == 1, "a child");
    printf("%zu\n", made);
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    signal(SIGTERM, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, 0);
    kill(0, SIGTERM);
    while (wait(NULL) > 0)
        ;
    return 0;
}
