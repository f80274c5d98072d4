/* Allocates nothing itself: all that is in it of malloc is what the C library needs. */
#include <stdio.h>

int main(int argc, char **argv) {
    return printf("%s %d\n", argv[0], argc) < 0;
}
