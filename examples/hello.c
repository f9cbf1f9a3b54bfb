/* SPDX-License-Identifier: MIT */
/* Three ticks of a timer on a thread of its own.  README.md shows this file. */
#include <aioctx/aioctx.h>
#include <semaphore.h>
#include <stdio.h>

static QEMUTimer *tick;
static sem_t done;

static void on_tick(void *opaque) /* runs on the iothread */
{
    int *left = opaque;
    printf("tick, %d left\n", --*left);
    if (*left > 0) {
        timer_mod(tick, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 10);
    } else {
        sem_post(&done);
    }
}

int main(void)
{
    int left = 3;
    sem_init(&done, 0, 0);
    IOThread *io = iothread_new("io0", NULL);
    if (!io) {
        perror("iothread_new");
        return 1;
    }
    AioContext *ctx = iothread_get_aio_context(io);
    tick = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_MS, on_tick, &left);
    timer_mod(tick, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 10); /* any thread may arm it */
    sem_wait(&done);
    timer_free(tick);
    iothread_destroy(io);
    return 0;
}
