/*
 * fork_exec PROGRAM [ARG]..: allocates, forks a child that allocates and then runs PROGRAM.
 * Three accounts: the child before its exec, PROGRAM's own, the parent.
 */
#include "truth.h"
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv) {
    t_require(argc > 1, "fork_exec PROGRAM [ARG]..");
    for (int i = 0; i < 100; i++)
        t_free(t_malloc((size_t)i * 10));
    pid_t pid = fork();
    t_require(pid >= 0, "fork");
    if (pid == 0) {
        t_reset();
        for (int i = 0; i < 40; i++)
            t_free(t_calloc(2, (size_t)i));
        t_print("fork_exec");
        execve(argv[1], argv + 1, environ);
        _exit(127);
    }
    int status;
    t_require(waitpid(pid, &status, 0) == pid && status == 0, "child");
    for (int i = 0; i < 60; i++)
        t_free(t_malloc((size_t)i * 20));
    t_print("fork_exec");
    return 0;
}
