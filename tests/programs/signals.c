/*
 * signals raise|storm: allocation in a signal handler, on top of a program that allocates.
 * raise: the signal comes at fixed points between calls. storm: a 1 ms timer; its handler allocates only when
 * the program is between calls, for malloc is not async-signal-safe.
 */
#include "truth.h"
#include <signal.h>
#include <sys/time.h>

static volatile sig_atomic_t between_calls;
static volatile sig_atomic_t handled, allocated_in_handler;

static void on_signal(int number) {
    (void)number;
    int saved = errno;
    handled++;
    if (between_calls) {
        t_free(t_malloc(333));
        t_free(t_calloc(2, 444));
        allocated_in_handler++;
    }
    errno = saved;
}

int main(int argc, char **argv) {
    int storm = argc > 1 && t_equal(argv[1], "storm");
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    if (storm) {
        struct itimerval every = {{0, 1000}, {0, 1000}};
        setitimer(ITIMER_REAL, &every, NULL);
        unsigned long state = 1;
        while (allocated_in_handler < 100) {
            void *p = t_malloc(t_next(&state) % 4000);
            between_calls = 1;
            for (volatile int i = 0; i < 200; i++)
                ;
            between_calls = 0;
            p = t_realloc(p, t_next(&state) % 4000 + 1);
            t_free(p);
        }
        struct itimerval never = {{0, 0}, {0, 0}};
        setitimer(ITIMER_REAL, &never, NULL);
    } else {
        for (size_t i = 0; i < 1000; i++) {
            void *p = t_malloc(i);
            between_calls = 1;
            raise(SIGUSR1);
            between_calls = 0;
            t_free(p);
        }
    }
    t_fact("signals", (unsigned long)handled);
    t_fact("allocated_in_handler", (unsigned long)allocated_in_handler);
    t_print("signals");
    return 0;
}
