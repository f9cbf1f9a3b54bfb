/* SPDX-License-Identifier: MIT */
/*
 * A block driver outside the library: a RAM disk that any number of threads may use at once.
 *
 *   cc -shared -fPIC -o ramdisk.so ramdisk.c $(pkg-config --cflags --libs aioctx)
 *   aioctx-blk --driver ./ramdisk.so --backend ramdisk:size=256M --iothreads 2
 *
 * The memory is a mapping that fills itself with zeroes: what was never written costs nothing.
 */
#include <aioctx/block_driver.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct ramdisk {
    char *data;
    int64_t size;
};

static const BlkOptDesc ramdisk_options[] = {
    { "size", BLK_OPT_SIZE, .help = "bytes; 64M" },
    { NULL },
};

static int ramdisk_open(const BlkOptions *opts, void **ret_state, char **ret_why)
{
    struct ramdisk *disk = malloc(sizeof(*disk));

    if (!disk) {
        return blk_fail(ret_why, ENOMEM, "out of memory");
    }
    disk->size = blk_opt_get(opts, "size", 64 << 20);
    disk->data = mmap(NULL, (size_t)disk->size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (disk->data == MAP_FAILED) {
        int err = errno;

        free(disk);
        return blk_fail(ret_why, err, "cannot map a disk of that size: %s", strerror(err));
    }
    *ret_state = disk;
    return 0;
}

static void ramdisk_close(void *state)
{
    struct ramdisk *disk = state;

    munmap(disk->data, (size_t)disk->size);
    free(disk);
}

static int64_t ramdisk_getlength(void *state)
{
    return ((struct ramdisk *)state)->size;
}

/* Called on the home thread of each context that uses the disk.  Memory is as fast as it is, so a
 * piece ends before it has been taken on; a slower driver would keep it in its queue, and call
 * blk_piece_done() from a callback of the context's loop. */
static void ramdisk_submit(BlkPiece *piece)
{
    struct ramdisk *disk = piece->state;
    char *at = disk->data + piece->offset;
    int64_t ret = (int64_t)piece->bytes;

    switch (piece->op) {
    case BLK_OP_READ:
    case BLK_OP_WRITE:
        for (int i = 0; i < piece->niov; at += piece->iov[i++].iov_len) {
            void *buf = piece->iov[i].iov_base;
            bool read = piece->op == BLK_OP_READ;

            memcpy(read ? buf : at, read ? at : buf, piece->iov[i].iov_len);
        }
        break;
    case BLK_OP_ZEROES:
        memset(at, 0, piece->bytes);
        break;
    case BLK_OP_FLUSH: /* nothing outlives the process */
        break;
    default:
        ret = -ENOTSUP; /* the core does without */
    }
    blk_piece_done(piece, ret);
}

static const BlockDriver ramdisk = {
    .abi = BLOCK_DRIVER_ABI,
    .name = "ramdisk",
    .options = ramdisk_options,
    .open = ramdisk_open,
    .close = ramdisk_close,
    .getlength = ramdisk_getlength,
    .submit = ramdisk_submit,
};

BLOCK_DRIVER_MODULE(ramdisk);
