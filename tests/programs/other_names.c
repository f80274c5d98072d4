/* other_names: threads with names of their own; the first thread ends before the last one allocates and ends. */
#include "truth.h"
#include <pthread.h>

static void *last(void *first) {
    t_require(pthread_setname_np(pthread_self(), "the last thread") == 0, "a name");
    t_require(pthread_join(*(pthread_t *)first, NULL) == 0, "the end of the first thread");
    for (unsigned long i = 1; i < 1000; i++)
        t_free(t_malloc(i));
    t_print("other_names");
    return NULL;
}

int main(void) {
    static pthread_t first, second;
    first = pthread_self();
    t_require(pthread_create(&second, NULL, last, &first) == 0, "a thread");
    pthread_exit(NULL);
}
