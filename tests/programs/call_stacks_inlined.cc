// Maps a chunk of 1 MiB and frees it, each in a function that is inlined into one that is not; says on which lines, and
// waits for standard input to close.
#include <cstdio>
#include <unistd.h>

namespace store {

int mapped_on, freed_on;

template <typename T> class Buffer {
  public:
    [[gnu::always_inline]] inline void reserve(std::size_t count) {
        mapped_on = __LINE__ + 1;
        data_ = new T[count];
    }
    [[gnu::always_inline]] inline void release() {
        freed_on = __LINE__ + 1;
        delete[] data_;
        data_ = nullptr;
    }

  private:
    T *volatile data_ = nullptr;
};

[[gnu::noinline]] void fill(Buffer<char> &buffer) { buffer.reserve(1 << 20); }
[[gnu::noinline]] void clear(Buffer<char> &buffer) { buffer.release(); }

} // namespace store

int main() {
    static store::Buffer<char> buffer;
    store::fill(buffer);
    store::clear(buffer);
    std::printf("{\"pid\":%d,\"mapped\":[\"store::Buffer<char>::reserve\",%d],\"freed\":[\"store::Buffer<char>::release\",%d]}\n",
                getpid(), store::mapped_on, store::freed_on);
    std::fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
}
