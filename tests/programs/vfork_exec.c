/*
 * vfork_exec MODE PROGRAM [ARG]..: as fork_exec, with a child that borrows the parent's memory.
 * MODE `exec`: the child only runs PROGRAM. `allocate`: it first makes ten calls in the shared heap, which
 * are the child's by process and the parent's by memory. `spawn`: posix_spawn.
 */
#include "truth.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;
static unsigned long child_mallocs, child_malloc_bytes;

int main(int argc, char **argv) {
    t_require(argc > 2, "vfork_exec exec|allocate|spawn PROGRAM [ARG]..");
    int allocates = t_equal(argv[1], "allocate");
    for (int i = 0; i < 100; i++)
        t_free(t_malloc((size_t)i * 10));
    pid_t pid;
    if (t_equal(argv[1], "spawn")) {
        t_require(!posix_spawn(&pid, argv[2], NULL, NULL, argv + 2, environ), "posix_spawn");
    } else {
        pid = vfork();
        t_require(pid >= 0, "vfork");
        if (pid == 0) {
            if (allocates) {
                for (size_t i = 1; i <= 10; i++) {
                    free(malloc(i * 16));
                    child_mallocs++;
                    child_malloc_bytes += i * 16;
                }
            }
            execve(argv[2], argv + 2, environ);
            _exit(127);
        }
    }
    int status;
    t_require(waitpid(pid, &status, 0) == pid && status == 0, "child");
    for (int i = 0; i < 60; i++)
        t_free(t_malloc((size_t)i * 20));
    t_fact("child_pid", (unsigned long)pid);
    t_fact("child_mallocs", child_mallocs);
    t_fact("child_malloc_bytes", child_malloc_bytes);
    t_print("vfork_exec");
    return 0;
}
