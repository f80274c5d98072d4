/*
 * arenas [THREADS] [LIMIT]: THREADS at once, with at most LIMIT arenas; each fills its heap past the first mapping of
 * access and gives all back. Truth: the first LIMIT - 1 threads that allocate make an arena each, the others share what
 * is there.
 */
#include "truth.h"
#include <pthread.h>

#define MOST_THREADS 32
#define BLOCKS 600

static pthread_barrier_t all_started, all_done;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void *work(void *argument) {
    (void)argument;
    void *slots[BLOCKS];
    pthread_mutex_lock(&turn);
    slots[0] = t_malloc(2000);
    pthread_mutex_unlock(&turn);
    pthread_barrier_wait(&all_started);
    for (int i = 1; i < BLOCKS; i++)
        slots[i] = t_malloc(2000);
    for (int i = 0; i < BLOCKS; i++)
        t_free(slots[i]);
    pthread_barrier_wait(&all_done);
    return NULL;
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? t_parse(argv[1], 8) : 8;
    unsigned long limit = argc > 2 ? t_parse(argv[2], 4) : 4;
    t_require(count >= limit && limit >= 2 && count <= MOST_THREADS, "LIMIT to 32 threads, 2 arenas or more");
    t_require(mallopt(M_ARENA_MAX, (int)limit), "mallopt");
    pthread_t threads[MOST_THREADS];
    pthread_barrier_init(&all_started, NULL, (unsigned)count);
    pthread_barrier_init(&all_done, NULL, (unsigned)count);
    for (unsigned long i = 0; i < count; i++)
        t_require(!pthread_create(&threads[i], NULL, work, NULL), "pthread_create");
    for (unsigned long i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    t_fact("arenas_made", limit - 1);
    t_fact("arenas_reused", count - (limit - 1));
    t_print("arenas");
    return 0;
}
