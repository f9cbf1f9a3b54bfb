/* SPDX-License-Identifier: MIT */
/* Included before each source of the library that is built for interleave.h: sends what blocks,
 * allocates or reads the time to interleave_model.c and interleave_arena.c. */
#ifndef TESTS_INTERLEAVE_REDIRECT_H
#define TESTS_INTERLEAVE_REDIRECT_H

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

void il_mutex_lock(pthread_mutex_t *m);
void il_mutex_unlock(pthread_mutex_t *m);
void il_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
void il_cond_broadcast(pthread_cond_t *c);
void *il_malloc(size_t size);
void *il_calloc(size_t n, size_t size);
void *il_aligned_alloc(size_t align, size_t size);
void il_free(void *p);
ssize_t il_write(int fd, const void *buf, size_t len);
ssize_t il_read(int fd, void *buf, size_t len);
int il_clock_gettime(struct timespec *ret);

#define pthread_mutex_lock(m) il_mutex_lock(m)
#define pthread_mutex_unlock(m) il_mutex_unlock(m)
#define pthread_mutex_destroy(m) ((void)(m))
#define pthread_cond_wait(c, m) il_cond_wait((c), (m))
#define pthread_cond_broadcast(c) il_cond_broadcast(c)
#define pthread_cond_signal(c) il_cond_broadcast(c) /* to wake more than one is allowed */
#define pthread_cond_destroy(c) ((void)(c))
#define malloc(size) il_malloc(size)
#define calloc(n, size) il_calloc((n), (size))
#define aligned_alloc(align, size) il_aligned_alloc((align), (size))
#define free(p) il_free(p)
#define write(fd, buf, len) il_write((fd), (buf), (len))
#define read(fd, buf, len) il_read((fd), (buf), (len))
#define clock_gettime(id, ts) il_clock_gettime(ts)
#define clock_nanosleep(id, flags, ts, left) ((void)(ts))
#define sched_yield() ((void)0)

#endif
