/* SPDX-License-Identifier: MIT */
/* Everything that aioctx offers. */
#ifndef AIOCTX_AIOCTX_H
#define AIOCTX_AIOCTX_H

#include <aioctx/aio.h>
#include <aioctx/aio_wait.h>
#include <aioctx/block.h>
#include <aioctx/block_driver.h>
#include <aioctx/main_loop.h>
#include <aioctx/observe.h>
#include <aioctx/rcu.h>
#include <aioctx/thread_pool.h>
#include <aioctx/throttle.h>
#include <aioctx/timers.h>

#endif
