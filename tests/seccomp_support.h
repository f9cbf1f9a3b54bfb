/* SPDX-License-Identifier: MIT */
/* System calls that are denied to the calling thread, and to the threads that it starts. */
#ifndef TESTS_SECCOMP_SUPPORT_H
#define TESTS_SECCOMP_SUPPORT_H

#include <cstddef>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <vector>

struct Denied {
    long call; /* SYS_* */
    int err;   /* what it answers */
    /* Where arg is not below 0: only when that argument has one of these bits, or is this. */
    int arg = -1;
    unsigned bits = 0;
    bool equal = false;
};

/* Installs the filter, for good.  Returns false where filters are not to be had. */
inline bool Deny(const std::vector<Denied> &denied)
{
    std::vector<struct sock_filter> code;

    for (const Denied &d : denied) {
        unsigned char skip = d.arg < 0 ? 1 : 3;

        code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
        code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(d.call), 0, skip));
        if (d.arg >= 0) {
            size_t at = offsetof(struct seccomp_data, args) + 8 * static_cast<size_t>(d.arg);

            code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<unsigned>(at)));
            code.push_back(
                BPF_JUMP(BPF_JMP | (d.equal ? BPF_JEQ : BPF_JSET) | BPF_K, d.bits, 0, 1));
        }
        code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(d.err)));
    }
    code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    struct sock_fprog prog = {
        .len = static_cast<unsigned short>(code.size()),
        .filter = code.data(),
    };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

#endif
