/* SPDX-License-Identifier: MIT */
#include "memory_watch.h"

#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/types.h>

/* Constant: the first calls come before any constructor.  For the same reason this file is compiled
 * without a sanitizer, which may not be ready then. */
thread_local MemoryWatch memory_watch;

static void Count()
{
    memory_watch.calls += memory_watch.counting;
}

/* Counts a call that asks for memory; @from: what must be refused for it to fail.  Returns whether
 * it is to fail. */
static bool Fails(Refuse from)
{
    Count();
    if (memory_watch.refuse < from) {
        return false;
    }
    if (memory_watch.granted > 0) {
        memory_watch.granted--;
        return false;
    }
    errno = ENOMEM;
    return true;
}

/* ---- Mappings -------------------------------------------------------------------------------- */

/* What would have been called: libc's, or a sanitizer's before it.  (No static variable keeps it:
 * its guard is a sanitizer's business too.) */
template <typename Func> static Func *Next(const char *name)
{
    return reinterpret_cast<Func *>(dlsym(RTLD_NEXT, name));
}

using MmapFunc = void *(void *, size_t, int, int, int, off64_t);
using MremapFunc = void *(void *, size_t, size_t, int, ...);

/* By their names in the object file: which one <sys/mman.h> means depends on the width of off_t. */
extern "C" void *WatchedMmap(void *addr, size_t bytes, int prot, int flags, int fd,
                             off_t offset) __asm__("mmap");
extern "C" void *WatchedMmap64(void *addr, size_t bytes, int prot, int flags, int fd,
                               off64_t offset) __asm__("mmap64");
extern "C" void *WatchedMremap(void *addr, size_t bytes, size_t new_bytes, int flags,
                               ...) __asm__("mremap");

void *WatchedMmap64(void *addr, size_t bytes, int prot, int flags, int fd, off64_t offset)
{
    if (Fails(Refuse::kMappings)) {
        return MAP_FAILED;
    }
    return Next<MmapFunc>("mmap64")(addr, bytes, prot, flags, fd, offset);
}

void *WatchedMmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset)
{
    return WatchedMmap64(addr, bytes, prot, flags, fd, offset);
}

void *WatchedMremap(void *addr, size_t bytes, size_t new_bytes, int flags, ...)
{
    void *new_addr = nullptr;

    if (new_bytes <= bytes) {
        Count();
    } else if (Fails(Refuse::kMappings)) {
        return MAP_FAILED;
    }
    if (flags & MREMAP_FIXED) {
        va_list args;

        va_start(args, flags);
        new_addr = va_arg(args, void *);
        va_end(args);
    }
    return Next<MremapFunc>("mremap")(addr, bytes, new_bytes, flags, new_addr);
}

/* ---- The heap -------------------------------------------------------------------------------- */

#if SANITIZER_HAS_MALLOC

const bool kMallocRefuses = false;

extern "C" void __sanitizer_malloc_hook(const volatile void *, size_t)
{
    Count();
}

extern "C" void __sanitizer_free_hook(const volatile void *)
{
    Count();
}

#else

const bool kMallocRefuses = true;

extern "C" {
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void __libc_free(void *p);

void *malloc(size_t bytes) noexcept
{
    return Fails(Refuse::kEverything) ? nullptr : __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes) noexcept
{
    return Fails(Refuse::kEverything) ? nullptr : __libc_calloc(n, bytes);
}

void *realloc(void *p, size_t bytes) noexcept
{
    return Fails(Refuse::kEverything) ? nullptr : __libc_realloc(p, bytes);
}

void *memalign(size_t align, size_t bytes) noexcept
{
    return Fails(Refuse::kEverything) ? nullptr : __libc_memalign(align, bytes);
}

void *aligned_alloc(size_t align, size_t bytes) noexcept
{
    return memalign(align, bytes);
}

int posix_memalign(void **ret, size_t align, size_t bytes) noexcept
{
    void *p = memalign(align, bytes);

    if (!p) {
        return ENOMEM;
    }
    *ret = p;
    return 0;
}

void free(void *p) noexcept
{
    Count();
    __libc_free(p);
}
}

#endif
