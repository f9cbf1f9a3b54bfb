/* SPDX-License-Identifier: MIT */
/* The drivers that come with the library; what a driver is, <aioctx/block_driver.h> says. */
#ifndef BLOCK_DRIVER_INT_H
#define BLOCK_DRIVER_INT_H

#include <aioctx/block_driver.h>

extern const BlockDriver blk_debug_driver, blk_file_driver, blk_null_driver, blk_throttle_driver;

#endif
