/*
 * call_stacks WAY: maps a chunk of 1 MiB and frees it, which raises the threshold, on a stack of a certain kind; says
 * which function did each on which line, and waits for standard input to close.
 *
 *   plain            from main
 *   deep BYTES       below 1,000 calls of a function with a frame of about so many bytes
 *   corrupt          where the address that the function would return to is none
 *   circular         where that address, and thousands above it, are one in the function itself
 *   generated OWNER  called by code that the program wrote, and named in /tmp/perf-PID.map, which belongs to that user
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEEP __attribute__((noinline, noclone))
#define BYTES (1 << 20)

static int mapped_on, freed_on;
static const char *mapped_in = "make_large", *freed_in = "drop_large";

/* What follows the calls keeps them from being jumps. */
static void *volatile made;
static volatile int done;

static KEEP void make_large(void) {
    mapped_on = __LINE__ + 1;
    made = malloc(BYTES);
    done++;
}

static KEEP void drop_large(void) {
    freed_on = __LINE__ + 1;
    free(made);
    done++;
}

static KEEP void both(void) {
    make_large();
    drop_large();
    done++;
}

static void wait_here(void) {
    char line[256], byte;
    int length = snprintf(line, sizeof line,
                          "{\"pid\":%d,\"mapped\":[\"%s\",%d],\"freed\":[\"%s\",%d]}\n", getpid(), mapped_in, mapped_on,
                          freed_in, freed_on);
    if (write(1, line, (size_t)length) != length)
        _exit(1);
    while (read(0, &byte, 1) > 0)
        ;
}

static KEEP int deep(unsigned left, size_t bytes) {
    volatile char frame[bytes];
    frame[0] = 1;
    if (left)
        deep(left - 1, bytes);
    else
        both();
    return frame[0];
}

static KEEP void on_a_broken_stack(size_t words, uintptr_t address) {
    uintptr_t *frame = __builtin_frame_address(0);
    /* Own frame pointer, own return, and what lies above: this function does not return. */
    for (size_t i = 1; i < words; i++)
        frame[i] = address;
    mapped_in = freed_in = "on_a_broken_stack";
    mapped_on = __LINE__ + 1;
    made = malloc(BYTES);
    freed_on = __LINE__ + 1;
    free(made);
    wait_here();
    _exit(0);
}

static KEEP void with_room_above(size_t words, uintptr_t address) {
    volatile char room[64 << 10];
    room[0] = room[sizeof room - 1] = 0;
    on_a_broken_stack(words, address);
    room[1] = 0;
}

static void generated(uid_t owner) {
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0, 0x5d, 0xc3};
    /* push %rbp; mov %rsp,%rbp; movabs $both,%rax; call *%rax; pop %rbp; ret */
    unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uintptr_t target = (uintptr_t)both;
    memcpy(page, code, sizeof code);
    memcpy(page + 6, &target, sizeof target);
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC))
        _exit(1);
    char path[64], line[128];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    int length = snprintf(line, sizeof line, "%lx %lx script:handle_request\n", (unsigned long)page, (unsigned long)sizeof code);
    FILE *map = fopen(path, "w");
    if (!map || fwrite(line, 1, (size_t)length, map) != (size_t)length || fclose(map) || chown(path, owner, owner))
        _exit(1);
    ((void (*)(void))(uintptr_t)page)();
    done++;
    wait_here();
    unlink(path);
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "plain";
    unsigned long number = argc > 2 ? strtoul(argv[2], NULL, 10) : 16;
    if (!strcmp(way, "deep"))
        deep(1000, number);
    else if (!strcmp(way, "corrupt"))
        with_room_above(512, 0x4141414141414141);
    else if (!strcmp(way, "circular"))
        with_room_above(8000, (uintptr_t)on_a_broken_stack + 24);
    else if (!strcmp(way, "generated"))
        return generated((uid_t)number), 0;
    else
        both();
    wait_here();
    return 0;
}
