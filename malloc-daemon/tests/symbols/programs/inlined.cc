// Stops itself in a function of a template's member, called through two functions that are merged into main's callee.
#include <csignal>

volatile int sink;

namespace outer {
template <typename T>
struct Box {
    T value;
    __attribute__((noinline)) void stop() {
        raise(SIGSTOP);
        sink += value;
    }
};

static inline __attribute__((always_inline)) void merged_inner(Box<long> &box) {
    box.value += sink;
    box.stop();  // line of merged_inner
    sink += 1;
}

static inline __attribute__((always_inline)) void merged_outer(Box<long> &box) {
    merged_inner(box);  // line of merged_outer
    sink += 2;
}

__attribute__((noinline)) void holder(int count) {
    Box<long> box{count};
    merged_outer(box);  // line of holder
    sink += 3;
}
}  // namespace outer

int main(int argc, char **) {
    outer::holder(argc);
    return sink & 1;
}
