/* SPDX-License-Identifier: MIT */
/*
 * Which object a function lies in, and what it is called there.
 *
 * dladdr(3) knows, too, but takes the lock that dlopen(3) and dlclose(3) hold while they run
 * constructors and destructors, and one of these may wait for the loop whose thread asks.
 * dl_iterate_phdr(3) takes only the one under which the list of objects changes.
 *
 * A symbol counts only where it begins: a static function has none, and lies behind another's.
 *
 * Source: System V Application Binary Interface, "Dynamic Linking"; the layout of DT_GNU_HASH:
 * https://sourceware.org/legacy-ml/binutils/2006-10/msg00377.html
 */
#include "aio/symbol_int.h"

#include <errno.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>

struct search {
    uintptr_t address;
    struct symbol *ret;
};

/* Some loaders put addresses into the table, others leave what the file has. */
static const void *at(const struct dl_phdr_info *info, ElfW(Addr) address)
{
    uintptr_t base = info->dlpi_addr;

    return (const void *)(address < base ? base + address : (uintptr_t)address);
}

/* How many symbols there are: the table itself does not say. */
static uint32_t count_symbols(const uint32_t *gnu_hash)
{
    uint32_t buckets = gnu_hash[0], first = gnu_hash[1], bloom_words = gnu_hash[2], last = 0;
    const uint32_t *bucket = gnu_hash + 4 + bloom_words * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *chain = bucket + buckets;

    for (uint32_t i = 0; i < buckets; i++) {
        last = bucket[i] > last ? bucket[i] : last;
    }
    if (last < first) {
        return first;
    }
    while (!(chain[last - first] & 1)) { /* the mark of a chain's end */
        last++;
    }
    return last + 1;
}

static const char *find_name(const struct dl_phdr_info *info, const ElfW(Dyn) * dyn,
                             uintptr_t address)
{
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    uint32_t n = 0;

    for (; dyn->d_tag != DT_NULL; dyn++) {
        if (dyn->d_tag == DT_SYMTAB) {
            symbols = at(info, dyn->d_un.d_ptr);
        } else if (dyn->d_tag == DT_STRTAB) {
            strings = at(info, dyn->d_un.d_ptr);
        } else if (dyn->d_tag == DT_GNU_HASH) {
            n = count_symbols(at(info, dyn->d_un.d_ptr));
        } else if (dyn->d_tag == DT_HASH && !n) {
            n = ((const uint32_t *)at(info, dyn->d_un.d_ptr))[1];
        }
    }
    for (uint32_t i = 0; symbols && strings && i < n; i++) {
        const ElfW(Sym) *s = &symbols[i];

        if (s->st_shndx != SHN_UNDEF && ELF64_ST_TYPE(s->st_info) == STT_FUNC &&
            info->dlpi_addr + s->st_value == address) {
            return strings + s->st_name;
        }
    }
    return NULL;
}

static int look_at_object(struct dl_phdr_info *info, size_t size, void *opaque)
{
    struct search *search = opaque;
    const ElfW(Dyn) *dyn = NULL;
    bool here = false;

    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + p->p_vaddr;

        if (p->p_type == PT_DYNAMIC) {
            dyn = (const ElfW(Dyn) *)begin;
        }
        here |= p->p_type == PT_LOAD && search->address - begin < p->p_memsz;
    }
    if (!here) {
        return 0;
    }
    /* The program's own has no name. */
    search->ret->object = *info->dlpi_name ? info->dlpi_name : program_invocation_name;
    search->ret->offset = search->address - info->dlpi_addr;
    search->ret->name = dyn ? find_name(info, dyn, search->address) : NULL;
    return 1;
}

struct symbol symbol_find(const void *func)
{
    struct symbol found = { 0 };
    struct search search = { (uintptr_t)func, &found };

    dl_iterate_phdr(look_at_object, &search);
    return found;
}
