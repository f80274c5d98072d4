/*
 * The entry of a program that is linked against an old libc by its path alone, without the start files of this
 * machine's: these want symbols that the old one does not have.
 */
__asm__(".text\n"
        ".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        "  .cfi_startproc\n"
        "  .cfi_undefined rip\n"
        "  xor %ebp, %ebp\n"
        "  mov %rdx, %r9\n" /* what the loader wants called at the end */
        "  pop %rsi\n"      /* argc */
        "  mov %rsp, %rdx\n"
        "  and $-16, %rsp\n"
        "  push %rax\n"
        "  push %rsp\n"
        "  xor %ecx, %ecx\n" /* no functions of old start files before and after main */
        "  xor %r8d, %r8d\n"
        "  lea main(%rip), %rdi\n"
        "  call *__libc_start_main@GOTPCREL(%rip)\n"
        "  hlt\n"
        "  .cfi_endproc\n"
        ".size _start, . - _start\n");
