// Stops itself inside nested calls; the first argument says in which.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define APART __attribute__((noinline, noclone))

volatile int sink;

APART void stop_here(void) {
    raise(SIGSTOP);
    sink++;
}

APART void third(int depth) {
    char buffer[64];
    memset(buffer, depth, sizeof buffer);
    sink += buffer[depth & 63];
    stop_here();
    sink++;
}

APART void second(int depth) {
    third(depth);
    sink++;
}

APART void first(int depth) {
    second(depth);
    sink++;
}

APART int recursive(int depth) {
    if (depth == 0)
        stop_here();
    else
        sink += recursive(depth - 1);
    return sink + depth;
}

// Over-aligned variables make the compiler realign the stack: the rule for the caller then reads memory.
APART void realigned(int depth) {
    _Alignas(64) char buffer[128 + (depth & 1)];
    memset(buffer, depth, sizeof buffer);
    sink += buffer[depth & 63];
    third(buffer[5]);
    sink += buffer[depth & 31];
}

APART void allocate(void) {
    stop_here();
    volatile char *block = malloc(1 << 20);
    block[0] = 1;
    sink += block[0];
    free((void *)block);
    sink++;
}

static void handler(int signal) {
    stop_here();
    sink += signal;
}

APART void interrupted(void) {
    *(volatile int *)8 = 1;
    sink++;
}

typedef void (*written)(void (*)(void));

APART void run_written_code(written code) {
    code(stop_here);
    sink++;
}

static void written_code(void) {
    // push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, code, sizeof code);
    char name[64];
    snprintf(name, sizeof name, "/tmp/perf-%d.map", getpid());
    FILE *map = fopen(name, "w");
    fprintf(map, "%lx %zx written_function\n", (unsigned long)page, sizeof code);
    fclose(map);
    run_written_code((written)page);
    unlink(name);
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "nested";
    if (!strcmp(way, "nested"))
        first(argc);
    if (!strcmp(way, "recursive"))
        sink += recursive(1000);
    if (!strcmp(way, "realigned"))
        realigned(argc);
    if (!strcmp(way, "allocate"))
        allocate();
    if (!strcmp(way, "signal")) {
        signal(SIGSEGV, handler);
        interrupted();
    }
    if (!strcmp(way, "written"))
        written_code();
    return sink & 1;
}
