/* SPDX-License-Identifier: MIT */
/* The NBD export with the clients that people use.  What is not installed skips its tests. */
#include "nbd_wire.h"

#include <random>
#include <regex>
#include <sys/stat.h>
#include <unistd.h>

using namespace nbd;

namespace
{

/* Runs a client, which has to end by itself and well; returns what it printed. */
std::string Client(const std::string &command)
{
    CommandResult r = RunCommand("timeout -s KILL 50 " + command);

    EXPECT_EQ(r.status, 0) << command << "\n" << r.output;
    return r.output;
}

std::string Quoted(const std::string &s)
{
    return "'" + s + "'";
}

/* Two exports: disk, a pattern of 8 MiB; copy, a hole as large. */
class NbdClients : public testing::TestWithParam<const char *>
{
protected:
    void SetUp() override
    {
        SKIP_WITHOUT_MONITOR(GetParam());
        MakeDisk(File("disk"), kDiskBytes, kDiskSeed);
        MakeSparseDisk(File("copy"), kDiskBytes, 0, {});
        server_ = std::make_unique<NbdServer>(std::vector<std::string>{
            "--monitor", GetParam(), "--threads", "2", "--listen", "127.0.0.1:0", "--export",
            "disk=file:" + File("disk"), "--export", "copy=file:" + File("copy") });
    }
    std::string File(const std::string &name) const
    {
        return dir_.Path(name + ".img");
    }
    /* An export's address, for a shell. */
    std::string Uri(const std::string &name) const
    {
        return Quoted(server_->Uri(name));
    }

    TempDir dir_;
    std::unique_ptr<NbdServer> server_;
};

ON_EACH_MONITOR_OF_A_SLOW_SUITE(NbdClients);

/* ---- libnbd ---------------------------------------------------------------------------------- */

TEST_P(NbdClients, NbdinfoTellsWhatTheExportsAre)
{
    SKIP_WITHOUT("nbdinfo", "libnbd-bin");
    EXPECT_EQ(Client("nbdinfo --size " + Uri("disk")), std::to_string(kDiskBytes) + "\n");
    std::string all = Client("nbdinfo --json " + Uri("disk"));
    for (const char *can : { "can_cache", "can_df", "can_flush", "can_fua", "can_multi_conn",
                             "can_trim", "can_zero" }) {
        EXPECT_TRUE(std::regex_search(all, std::regex(std::string("\"") + can + "\": *true")))
            << can << "\n"
            << all;
    }
    EXPECT_TRUE(std::regex_search(all, std::regex("\"base:allocation\""))) << all;
    EXPECT_TRUE(std::regex_search(all, std::regex("\"is_read_only\": *false"))) << all;
    std::string list = Client("nbdinfo --list --json " + Uri(""));
    EXPECT_NE(list.find("\"disk\""), std::string::npos) << list;
    EXPECT_NE(list.find("\"copy\""), std::string::npos) << list;
    std::string map = Client("nbdinfo --map " + Uri("copy"));
    EXPECT_TRUE(std::regex_search(map, std::regex("0 +8388608 +3 +hole,zero"))) << map;
    map = Client("nbdinfo --map " + Uri("disk"));
    EXPECT_TRUE(std::regex_search(map, std::regex("0 +8388608 +0 +data"))) << map;
    EXPECT_EQ(
        Client("nbdinfo --size nbd://127.0.0.1:" + std::to_string(server_->TcpPort()) + "/disk"),
        std::to_string(kDiskBytes) + "\n");
}

TEST_P(NbdClients, NbdcopyCopiesInBothDirectionsAndBetweenExports)
{
    SKIP_WITHOUT("nbdcopy", "libnbd-bin");
    std::string source = File("source"), back = File("back");

    MakeSparseDisk(source, kDiskBytes, 31, { { kMiB, 3 * kMiB }, { 6 * kMiB, 4096 } });
    Client("nbdcopy --connections=4 --threads=2 --requests=16 --flush " + source + " " +
           Uri("copy"));
    EXPECT_TRUE(Same(ReadFile(File("copy")), ReadFile(source)));
    Client("nbdcopy --connections=4 --threads=2 " + Uri("copy") + " " + back);
    EXPECT_TRUE(Same(ReadFile(back), ReadFile(source)));
    struct stat st;
    ASSERT_EQ(stat(back.c_str(), &st), 0);
    EXPECT_LT(st.st_blocks * 512, 5 * kMiB) << "holes are copied as holes";
    /* Over data that has to be zeroed; and from one export into the other. */
    Client("nbdcopy --flush " + source + " " + Uri("disk"));
    EXPECT_TRUE(Same(ReadFile(File("disk")), ReadFile(source)));
    MakeDisk(back, kDiskBytes, 32);
    Client("nbdcopy " + back + " " + Uri("disk"));
    Client("nbdcopy --synchronous " + Uri("disk") + " " + Uri("copy"));
    EXPECT_TRUE(Same(ReadFile(File("copy")), ReadFile(back)));
}

TEST_P(NbdClients, NbdshSeesWhatTheProtocolPromises)
{
    /* It may find another Python than the one that its module is installed for. */
    const std::string nbdsh = "env PATH=/usr/bin:\"$PATH\" nbdsh";
    SKIP_WITHOUT("nbdsh", "libnbd-bin");
    if (RunCommand(nbdsh + " -c pass").status != 0) {
        GTEST_SKIP() << "nbdsh finds no module nbd (Debian package python3-libnbd)";
    }
    WriteFile(File("script"), R"(
import errno
h.add_meta_context("base:allocation")
h.set_strict_mode(0)                    # what is wrong is sent as well
h.connect_uri(uri)
size = h.get_size()
assert size == 8 << 20 and h.can_multi_conn() and not h.is_read_only()
assert h.get_structured_replies_negotiated()
h.pwrite(b"\x55" * 65536, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 4096) == b"\x55" * 65536
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 8192) == bytes(4096)
h.cache(4096, 0)
h.trim(65536, 1 << 20)
h.flush()
seen = []
def extent(context, offset, entries, error):
    assert context == "base:allocation"
    seen.extend(entries)
h.block_status(65536, 4096, extent, nbd.CMD_FLAG_REQ_ONE)
assert len(seen) == 2 and seen[1] == 0, seen
data, chunks = bytearray(), []
def chunk(buf, offset, status, error):
    chunks.append((len(buf), offset, status))
data = h.pread_structured(1 << 20, 4 << 20, chunk)
assert data == bytes(1 << 20) and sum(c[0] for c in chunks) == 1 << 20
def fails(number, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == number, (e.errno, number)
        return
    raise AssertionError("no error")
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.ENOSPC, h.pwrite, bytes(512), size - 256)
fails(errno.EINVAL, h.trim, 512, 4096, 1 << 9)
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), i * 4096)
           for i in range(64)]
while h.aio_in_flight():
    h.poll(-1)
for c in cookies:
    assert h.aio_command_completed(c)
for i in range(64):
    assert h.pread(4096, i * 4096) == bytes([i]) * 4096
h.shutdown()
print("all well")
)");
    EXPECT_EQ(Client(nbdsh + " -c 'uri = \"" + server_->Uri("copy") + "\"' -c \"exec(open('" +
                     File("script") + "').read())\""),
              "all well\n");
}

/* ---- QEMU's tools ---------------------------------------------------------------------------- */

TEST_P(NbdClients, QemuImgConvertsComparesAndMaps)
{
    SKIP_WITHOUT("qemu-img", "qemu-utils");
    std::string source = File("source"), back = File("back");

    MakeSparseDisk(source, kDiskBytes, 33, { { 0, 65536 }, { 2 * kMiB, 2 * kMiB } });
    Client("qemu-img convert -n -W -m 8 -f raw -O raw " + source + " " + Uri("copy"));
    EXPECT_NE(Client("qemu-img compare -f raw -F raw " + source + " " + Uri("copy"))
                  .find("Images are identical"),
              std::string::npos);
    Client("qemu-img convert -f raw -O raw " + Uri("copy") + " " + back);
    EXPECT_TRUE(Same(ReadFile(back), ReadFile(source)));
    EXPECT_EQ(RunCommand("qemu-img compare -f raw -F raw " + source + " " + Uri("disk")).status, 1)
        << "they differ";
    std::string map = Client("qemu-img map -f raw --output=json " + Uri("copy"));
    EXPECT_TRUE(std::regex_search(
        map, std::regex("\"start\": 2097152, \"length\": 2097152[^}]*\"data\": true")))
        << map;
    EXPECT_NE(Client("qemu-img info -f raw --output=json " + Uri("disk")).find("8388608"),
              std::string::npos);
}

TEST_P(NbdClients, QemuIoVerifiesItsPatterns)
{
    SKIP_WITHOUT("qemu-io", "qemu-utils");
    std::string out = Client(
        "qemu-io -f raw -t writeback -c 'write -P 0xab 0 1M' -c 'flush' -c 'read -P 0xab 0 1M' "
        "-c 'write -z 64k 64k' -c 'read -P 0 64k 64k' -c 'write -z -u 256k 64k' "
        "-c 'read -P 0 256k 64k' -c 'discard 512k 64k' -c 'write -f -P 0xcd 3000 5000' "
        "-c 'read -P 0xcd 3000 5000' -c 'read -P 0xab 8000 3000' "
        "-c 'aio_write -P 0x11 1M 64k' -c 'aio_write -P 0x22 1088k 64k' -c 'aio_flush' "
        "-c 'read -P 0x11 1M 64k' -c 'read -P 0x22 1088k 64k' " +
        Uri("copy"));
    EXPECT_EQ(out.find("ailed"), std::string::npos) << out;
    EXPECT_TRUE(Same(ReadFile(File("copy")).substr(3000, 5000), std::string(5000, '\xcd')));
}

/* ---- fio ------------------------------------------------------------------------------------- */

TEST_P(NbdClients, FioVerifiesWhatItWrote)
{
    SKIP_WITHOUT("fio", "fio");
    if (RunCommand("fio --enghelp=nbd").output.find("uri") == std::string::npos) {
        GTEST_SKIP() << "this fio has no nbd engine";
    }
    std::string out = Client("sh -c 'cd " + dir_.Path("") +
                             " && fio --name=verify --ioengine=nbd --uri=\"$0\" --thread "
                             "--rw=randrw --bsrange=512-64k --size=6m --iodepth=32 "
                             "--verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=5 "
                             "--fsync=32' " +
                             Uri("copy"));
    EXPECT_NE(out.find("err= 0"), std::string::npos) << out;
}

/* ---- A file system --------------------------------------------------------------------------- */

TEST_P(NbdClients, Ext4OverNbdfuseKeepsItsFiles)
{
    SKIP_WITHOUT("nbdfuse", "nbdfuse");
    SKIP_WITHOUT("mkfs.ext4", "e2fsprogs");
    if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) != 0) {
        GTEST_SKIP() << "needs root and /dev/fuse";
    }
    if (RunCommand("losetup -f && unshare -m true").status != 0) {
        GTEST_SKIP() << "needs a loop device and a mount namespace of its own";
    }
    /* All mounts are in a namespace that ends with the script. */
    WriteFile(File("script"), R"(
set -eu
cd "$1"
mkdir -p fuse mnt
nbdfuse --pidfile=fuse.pid fuse "$2" &
fuse=$!
trap 'umount mnt 2>/dev/null || :; fusermount3 -u fuse 2>/dev/null || umount fuse; wait $fuse' EXIT
for i in $(seq 1000); do [ ! -s fuse.pid ] || break; sleep 0.02; done
mkfs.ext4 -q -F -E nodiscard fuse/nbd
mount -o loop fuse/nbd mnt
mkdir mnt/d
seq 1 100000 >mnt/d/numbers
cp mnt/d/numbers mnt/copy
rm mnt/d/numbers
sync -f mnt/copy
umount mnt
e2fsck -f -n fuse/nbd >/dev/null 2>&1
mount -o loop fuse/nbd mnt
seq 1 100000 | cmp - mnt/copy
[ ! -e mnt/d/numbers ]
umount mnt
echo all well
)");
    EXPECT_EQ(Client("unshare -m sh " + File("script") + " " + dir_.Path("") + " " + Uri("copy")),
              "all well\n");
}

} // namespace
