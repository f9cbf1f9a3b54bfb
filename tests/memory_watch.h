/* SPDX-License-Identifier: MIT */
/* Counts what a thread allocates and frees, and refuses it memory: for programs that ask for it. */
#ifndef TESTS_MEMORY_WATCH_H
#define TESTS_MEMORY_WATCH_H

/*
 * A program that links memory_watch.cc has malloc(), mmap() and their kin of its own, which stand
 * before libc's for every library of the process.  With AddressSanitizer and ThreadSanitizer, whose
 * malloc() cannot be replaced, the sanitizer's hooks count instead; mmap() is its own there too.
 */
enum class Refuse { kNothing, kMappings, kEverything };

struct MemoryWatch {
    bool counting;
    unsigned long calls; /* that allocated, freed or moved memory, while counting */
    Refuse refuse;       /* fails, unless it shrinks a mapping... */
    unsigned granted;    /* ...after so many */
};
extern thread_local MemoryWatch memory_watch;

/* Whether malloc() is the program's, so that it can refuse. */
extern const bool kMallocRefuses;

/* How often @func allocates or frees on this thread. */
template <typename Func> unsigned long MemoryCallsIn(Func func)
{
    memory_watch.calls = 0;
    memory_watch.counting = true;
    func();
    memory_watch.counting = false;
    return memory_watch.calls;
}

/* In its scope this thread gets what is named @granted times, and then no more. */
class MemoryRefused
{
public:
    MemoryRefused(Refuse refuse, unsigned granted)
    {
        memory_watch.granted = granted;
        memory_watch.refuse = refuse;
    }
    ~MemoryRefused()
    {
        memory_watch.refuse = Refuse::kNothing;
    }
    MemoryRefused(const MemoryRefused &) = delete;
    MemoryRefused &operator=(const MemoryRefused &) = delete;
};

#endif
