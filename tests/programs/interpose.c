/*
 * The second oracle, independent of the victims' own counting: preloaded in front of the libc it counts
 * every outermost call of a public function, whoever makes it (the victim, the libc itself, the dynamic
 * linker), and appends its account to the file INTERPOSE_FILE when the program returns from main.
 *
 * It reaches the real functions by the libc's private names, for dlsym itself may allocate. With T_NEXT it stands in
 * front of another allocator and reaches that by dlsym, which glibc 2.34 and later serves without allocating.
 */
#include "truth.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef T_NEXT
#define FROM_NEXT(type, name, parameters, arguments)                                                                   \
    static type next_##name parameters {                                                                               \
        static type(*real) parameters;                                                                                 \
        if (!real)                                                                                                     \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                                                 \
        return real arguments;                                                                                         \
    }
FROM_NEXT(void *, malloc, (size_t size), (size))
FROM_NEXT(void *, calloc, (size_t nmemb, size_t size), (nmemb, size))
FROM_NEXT(void *, realloc, (void *old, size_t size), (old, size))
FROM_NEXT(void, free, (void *old), (old))
FROM_NEXT(void *, memalign, (size_t alignment, size_t size), (alignment, size))
FROM_NEXT(void *, valloc, (size_t size), (size))
#define __libc_malloc next_malloc
#define __libc_calloc next_calloc
#define __libc_realloc next_realloc
#define __libc_free next_free
#define __libc_memalign next_memalign
#define __libc_valloc next_valloc
#else
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);
extern void *__libc_valloc(size_t);
extern void *__libc_pvalloc(size_t);
#endif

/*
 * Above zero inside a call: what a public function calls in its turn is not outermost. Kept by thread id and not in
 * thread-local storage: a further module with such storage makes every thread's vector in the libc 16 bytes longer,
 * and that vector is allocated by one of the calls that are counted. Ids are below 2^22 (kernel.pid_max).
 */
static signed char depths[1 << 22];

#ifdef T_ALIAS
static __attribute__((constructor)) void alias(void) { t_aligned_alloc_is_memalign = 1; }
#endif

static signed char *depth(void) { return &depths[syscall(SYS_gettid) & ((1 << 22) - 1)]; }
static void enter(void) { ++*depth(); }
static void leave(void) { --*depth(); }
static int outermost(void) { return *depth() == 0; }

void *malloc(size_t size) {
    if (outermost())
        t_count_malloc(size);
    enter();
    void *p = __libc_malloc(size);
    leave();
    return p;
}

void *calloc(size_t nmemb, size_t size) {
    if (outermost())
        t_count_calloc(nmemb, size);
    enter();
    void *p = __libc_calloc(nmemb, size);
    leave();
    return p;
}

void *realloc(void *old, size_t size) {
    if (outermost())
        t_count_realloc(size);
    enter();
    void *p = __libc_realloc(old, size);
    leave();
    return p;
}

void *reallocarray(void *old, size_t nmemb, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(nmemb, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(old, bytes);
}

void *memalign(size_t alignment, size_t size) {
    if (outermost())
        t_count_memalign(alignment, size);
    enter();
    void *p = __libc_memalign(alignment, size);
    leave();
    return p;
}

void *aligned_alloc(size_t alignment, size_t size) {
    static void *(*real)(size_t, size_t);
    if (outermost())
        t_count_aligned_alloc(alignment, size);
    enter();
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "aligned_alloc");
    void *p = real(alignment, size);
    leave();
    return p;
}

int posix_memalign(void **pointer, size_t alignment, size_t size) {
    static int (*real)(void **, size_t, size_t);
    if (outermost())
        t_count_posix_memalign(alignment, size);
    enter();
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "posix_memalign");
    int status = real(pointer, alignment, size);
    leave();
    return status;
}

void *valloc(size_t size) {
    if (outermost())
        t_count_valloc(size);
    enter();
    void *p = __libc_valloc(size);
    leave();
    return p;
}

#ifndef T_FOREIGN
void *pvalloc(size_t size) {
    if (outermost())
        t_count_pvalloc(size);
    enter();
    void *p = __libc_pvalloc(size);
    leave();
    return p;
}
#endif

void free(void *pointer) {
    if (outermost())
        t_count_free(pointer);
    enter();
    __libc_free(pointer);
    leave();
}

static __attribute__((destructor)) void report(void) {
    const char *path = getenv("INTERPOSE_FILE");
    if (!path)
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) {
        t_print_to(fd, "interpose");
        close(fd);
    }
}
