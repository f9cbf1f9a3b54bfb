/* SPDX-License-Identifier: MIT */
/* Which thread is a context's home, and what happens when that thread ends. */
#ifndef AIO_HOME_INT_H
#define AIO_HOME_INT_H

#include <aioctx/aio.h>

/* One for each thread, in its thread-local memory. */
struct home_thread {
    AioContext *current;  /* see qemu_get_current_aio_context() */
    AioContext *contexts; /* those it is home of, by next_of_home */
    unsigned depth;       /* of iterations */
    unsigned forgotten;   /* how many contexts may not be current any more */
    bool zombies;         /* atomic: one of them is to be closed; set under that context's lock */
};

/* Closes those of the calling thread's contexts whose last reference went elsewhere. */
void home_close_zombies(void);

/* Forgets @ctx as one of the calling thread's, whose home it is. */
void home_forget(AioContext *ctx);

/* The calling thread has no current context any more, if that is @ctx. */
void home_unset_current(AioContext *ctx);

/* What an iteration found. */
struct home_before {
    AioContext *current;
    unsigned forgotten;
};

/* Around an iteration, in which @ctx is the thread's current context. */
struct home_before home_begin_iteration(AioContext *ctx);
void home_end_iteration(struct home_before before);

/* context.c: closes a context without references; on its home thread unless that has exited. */
void context_close(AioContext *ctx);

#endif
