/* Preloaded into a process: hides everything newer than AVX2 from onnxruntime and from readers of /proc/cpuinfo.

   The tool replaces each `cpuid` (0f a2) of onnxruntime's library by `int3; nop` (cc 90) in a copy. This file opens the copy
   in place of the library, and answers the trap as the processor would, less the bits of AVX-512, VNNI and AMX.
   HIDE_LIBRARY, HIDE_COPY and HIDE_CPUINFO are paths: the library, its copy, and the text that /proc/cpuinfo gives. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

/* Leaf 7: ebx F DQ IFMA PF ER CD BW VL; ecx VBMI VBMI2 VNNI BITALG VPOPCNTDQ; edx 4VNNIW 4FMAPS VP2INTERSECT AMX-BF16 FP16
   AMX-TILE AMX-INT8. Leaf 7, subleaf 1: eax AVX-VNNI AVX512-BF16 AMX-FP16 AVX-IFMA; edx VNNI-INT8 NE-CONVERT VNNI-INT16 AVX10. */
static const unsigned EBX7 = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned ECX7 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned EDX7 = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned EAX71 = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const unsigned EDX71 = BIT(4) | BIT(5) | BIT(10) | BIT(19);

static void answer(int signal_number, siginfo_t *information, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *after = (const unsigned char *)registers[REG_RIP];
    if (after[-1] != 0xcc || after[0] != 0x90)
        abort(); /* not a trap of ours */
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX];
    unsigned a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0)
        b &= ~EBX7, c &= ~ECX7, d &= ~EDX7;
    if (leaf == 7 && subleaf == 1)
        a &= ~EAX71, d &= ~EDX71;
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    (void)signal_number, (void)information;
}

__attribute__((constructor)) static void listen(void)
{
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
}

static const char *instead(const char *path, const char *asked, const char *given)
{
    const char *from = getenv(asked), *to = getenv(given);
    return path && from && to && strcmp(path, from) == 0 ? to : path;
}

void *dlopen(const char *path, int flags)
{
    void *(*real)(const char *, int) = dlsym(RTLD_NEXT, "dlopen");
    return real(instead(path, "HIDE_LIBRARY", "HIDE_COPY"), flags);
}

static const char *shown(const char *path)
{
    const char *text = getenv("HIDE_CPUINFO");
    return text && strcmp(path, "/proc/cpuinfo") == 0 ? text : path;
}

/* On x86-64 both are one function: offsets have 64 bits anyway. */
int open64(const char *path, int flags, ...)
{
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    mode_t mode = 0;
    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    return real(shown(path), flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));
