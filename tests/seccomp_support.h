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
};

/* Installs the filter, for good.  Returns false where filters are not to be had. */
inline bool Deny(const std::vector<Denied> &denied)
{
    std::vector<struct sock_filter> code = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };

    for (const Denied &d : denied) {
        code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(d.call), 0, 1));
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
