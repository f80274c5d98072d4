/*
 * Allocates at a rate that it is told: for each byte on standard input it works for half a second and answers one line
 * with the calls of malloc it made and the nanoseconds of CPU time it took. `f`: as fast as it can. `m`: busy all the time,
 * with twenty calls for each millisecond of CPU time. `s`: ten calls every 10 ms. When the input closes it prints its
 * account and ends.
 */
#include "truth.h"
#include <time.h>

#define NANOSECONDS 1000000000UL

static unsigned long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (unsigned long)t.tv_sec * NANOSECONDS + (unsigned long)t.tv_nsec;
}

/* 70 of 100 small, 25 larger, 5 too large for the thread's cache. */
static size_t size_of_turn(unsigned long turn) {
    unsigned long n = turn % 100;
    return n < 70 ? 24 : n < 95 ? 200 : 3000;
}

static unsigned long turn;

/* By CPU time: what else the machine does changes nothing of the calls for each second of it. */
static void spin(unsigned long nanoseconds) {
    unsigned long end = now(CLOCK_PROCESS_CPUTIME_ID) + nanoseconds;
    while (now(CLOCK_PROCESS_CPUTIME_ID) < end) {
    }
}

static void pairs(unsigned long count) {
    for (unsigned long i = 0; i < count; i++) {
        /* Twenty are held at a time, so that free does not always follow its malloc. */
        static void *held[20];
        t_free(held[turn % 20]);
        held[turn % 20] = t_malloc(size_of_turn(turn * 37));
        turn++;
    }
}

int main(void) {
    char byte;
    t_require(mallopt(M_MMAP_THRESHOLD, 128 * 1024), "mallopt");
    t_threshold_pinned = 1;
    for (;;) {
        ssize_t got = read(0, &byte, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        unsigned long began = turn, cpu = now(CLOCK_PROCESS_CPUTIME_ID), end = now(CLOCK_MONOTONIC) + NANOSECONDS / 2;
        /* One chunk is mapped whatever happens else. */
        t_free(t_malloc(1 << 20));
        while (now(CLOCK_MONOTONIC) < end) {
            if (byte == 'f') {
                pairs(1000);
            } else if (byte == 'm') {
                pairs(20);
                spin(NANOSECONDS / 1000);
            } else {
                struct timespec pause = {0, 10000000};
                pairs(10);
                nanosleep(&pause, NULL);
            }
        }
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        t_length = 0;
        t_number(turn - began);
        t_text(" ");
        t_number(cpu);
        t_text("\n");
        t_write(1, t_buffer, t_length);
    }
    t_print("rate");
    return 0;
}
