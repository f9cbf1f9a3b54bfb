/* SPDX-License-Identifier: MIT */
/*
 * A toy virtual CPU in instruction-count mode: every timer fires at the same instruction, and so at
 * the same virtual time, in every run.
 *
 * Usage: icount_cpu [SHIFT]      an instruction takes 2^SHIFT ns, 0 to 10; default 3
 *
 * The guest computes primes, arms a one-shot timer from its program, and sleeps (wfi) until an
 * interrupt.  The machine around it has a periodic tick, and a disk that is slow now and then.
 * With sleep=off a sleep takes no real time.
 */
#include <aioctx/aioctx.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { IRQ_TICK = 1, IRQ_ALARM = 2, IRQ_DISK = 4 };

#define TICK_NS (10 * SCALE_MS)

enum op {
    OP_SET,   /* r[a] = b */
    OP_ADD,   /* r[a] += r[b] */
    OP_MOD,   /* r[a] = r[a] % r[b] */
    OP_COPY,  /* r[a] = r[b] */
    OP_JZ,    /* to b when r[a] is 0 */
    OP_JLT,   /* to c when r[a] < r[b] */
    OP_JMP,   /* to b */
    OP_ALARM, /* arms the alarm r[a] us from now */
    OP_READ,  /* starts the disk */
    OP_WFI,   /* sleeps until an interrupt, then r[a] = the interrupts, which it clears */
    OP_PRINT, /* prints r[a] */
    OP_HALT,
};

struct insn {
    enum op op;
    int64_t a, b, c;
};

/* Counts the primes below r1 in r0; r7 is 1, r6 is 0.  Then sleeps a few times, and goes on. */
static const struct insn program[] = {
    { OP_SET, 7, 1, 0 },
    { OP_SET, 1, 300, 0 },
    { OP_SET, 8, 4, 0 }, /* rounds */
    /* 3: a round */
    { OP_SET, 0, 0, 0 },
    { OP_SET, 2, 2, 0 },
    /* 5: is r2 a prime? */
    { OP_SET, 3, 2, 0 },
    /* 6 */
    { OP_JLT, 3, 2, 9 },
    { OP_ADD, 0, 7, 0 },
    { OP_JMP, 0, 14, 0 },
    /* 9 */
    { OP_COPY, 4, 2, 0 },
    { OP_MOD, 4, 3, 0 },
    { OP_JZ, 4, 14, 0 },
    { OP_ADD, 3, 7, 0 },
    { OP_JMP, 0, 6, 0 },
    /* 14: the next one */
    { OP_ADD, 2, 7, 0 },
    { OP_JLT, 2, 1, 5 },
    { OP_PRINT, 0, 0, 0 },
    /* 17: waits for the alarm and the disk, which come in any order, between ticks */
    { OP_SET, 5, 7777, 0 },
    { OP_ALARM, 5, 0, 0 },
    { OP_READ, 0, 0, 0 },
    { OP_WFI, 9, 0, 0 },
    { OP_PRINT, 9, 0, 0 },
    { OP_WFI, 9, 0, 0 },
    { OP_PRINT, 9, 0, 0 },
    /* 24 */
    { OP_SET, 4, -1, 0 },
    { OP_ADD, 8, 4, 0 },
    { OP_JZ, 8, 29, 0 },
    { OP_ADD, 1, 1, 0 },
    { OP_JMP, 0, 3, 0 },
    /* 29 */
    { OP_HALT, 0, 0, 0 },
};

static struct machine {
    int64_t r[10];
    unsigned pc, irqs;
    bool asleep, halted;
    bool leave;       /* the slice: a sooner deadline was armed */
    int64_t in_slice; /* instructions not accounted for yet */
    QEMUTimer *tick, *alarm, *disk;
    int reads;
} m;

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
}

/* ---- Devices: callbacks on the virtual CPU's thread, between two slices ---------------------- */

static void raise_irq(int irq, const char *name)
{
    printf("%12" PRId64 " ns, instruction %9" PRId64 ": %s\n", now_ns(), icount_get_raw(), name);
    m.irqs |= irq;
}

static void on_tick(void *opaque)
{
    raise_irq(IRQ_TICK, "tick");
    timer_forward(m.tick, now_ns(), TICK_NS);
}

static void on_alarm(void *opaque)
{
    raise_irq(IRQ_ALARM, "alarm");
}

static void on_disk(void *opaque)
{
    raise_irq(IRQ_DISK, "disk");
}

static void start_disk(void)
{
    int64_t latency_us = ++m.reads % 3 ? 90 : 12000;

    timer_mod(m.disk, now_ns() + latency_us * SCALE_US);
}

/* ---- The virtual CPU ------------------------------------------------------------------------- */

/* Before the guest sees the time: what ran so far in this slice belongs to it. */
static void account(void)
{
    icount_update(m.in_slice);
    m.in_slice = 0;
}

static void on_exit_request(void *opaque)
{
    m.leave = true;
}

static void step(void)
{
    const struct insn *i = &program[m.pc++];

    m.in_slice++;
    switch (i->op) {
    case OP_SET:
        m.r[i->a] = i->b;
        break;
    case OP_ADD:
        m.r[i->a] += m.r[i->b];
        break;
    case OP_MOD:
        m.r[i->a] %= m.r[i->b];
        break;
    case OP_COPY:
        m.r[i->a] = m.r[i->b];
        break;
    case OP_JZ:
        m.pc = m.r[i->a] == 0 ? i->b : m.pc;
        break;
    case OP_JLT:
        m.pc = m.r[i->a] < m.r[i->b] ? i->c : m.pc;
        break;
    case OP_JMP:
        m.pc = i->b;
        break;
    case OP_ALARM:
        account();
        timer_mod_ns(m.alarm, now_ns() + m.r[i->a] * SCALE_US);
        break;
    case OP_READ:
        account();
        start_disk();
        break;
    case OP_WFI:
        m.asleep = !m.irqs;
        if (m.asleep) {
            m.pc--; /* once more when it wakes */
        } else {
            m.r[i->a] = m.irqs;
            m.irqs = 0;
        }
        break;
    case OP_PRINT:
        printf("guest: %" PRId64 "\n", m.r[i->a]);
        break;
    case OP_HALT:
        m.halted = true;
        break;
    }
}

static void run_slice(void)
{
    int64_t n = icount_budget(QEMU_TIMER_ATTR_ALL);

    m.leave = false;
    while (n-- > 0 && !m.leave && !m.asleep && !m.halted) {
        step();
    }
    account();
}

static void run(void)
{
    while (!m.halted) {
        if (m.asleep) {
            icount_start_warp_timer(); /* to the next deadline, at once */
        } else {
            run_slice();
        }
        while (qemu_clock_run_timers(QEMU_CLOCK_VIRTUAL)) {
        }
        if (m.asleep && m.irqs) {
            m.asleep = false;
            icount_account_warp_timer();
        }
    }
}

int main(int argc, char **argv)
{
    char *end = "";
    IcountOptions opts = {
        .shift = argc > 1 ? (int)strtol(argv[1], &end, 10) : 3,
        .no_sleep = true,
        .exit_cb = on_exit_request,
    };
    int ret = *end ? -1 : icount_configure(&opts);

    if (ret < 0) {
        fprintf(stderr, "icount_cpu: SHIFT is %s; it is 0 to %d\n", argc > 1 ? argv[1] : "3",
                ICOUNT_MAX_SHIFT);
        return 1;
    }
    m.tick = timer_new_ns(QEMU_CLOCK_VIRTUAL, on_tick, NULL);
    m.alarm = timer_new_ns(QEMU_CLOCK_VIRTUAL, on_alarm, NULL);
    m.disk = timer_new_ns(QEMU_CLOCK_VIRTUAL, on_disk, NULL);
    cpu_enable_ticks();
    timer_mod(m.tick, now_ns() + TICK_NS);
    run();
    cpu_disable_ticks();
    printf("%12" PRId64 " ns, instruction %9" PRId64 ": halted\n", now_ns(), icount_get_raw());
    timer_free(m.tick);
    timer_free(m.alarm);
    timer_free(m.disk);
    icount_configure(NULL);
    return 0;
}
