/* SPDX-License-Identifier: MIT */
/*
 * Small cases of two and three threads, run through every order of their accesses; and the
 * scheduler itself, against a model of its own.  See interleave.h.
 *
 * AIOCTX_INTERLEAVE_REPLAY=CASE/FAULT:SCHEDULE, as a failure prints it, runs that one order and
 * shows each step.
 */
#include "interleave_cases_int.h"

extern "C" {
#include "rcu/atomic_int.h"
}

#include <cstdlib>
#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <random>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

static const il_case *const kCases[] = {
    &il_mod_mod,        &il_mod_del,      &il_mod_free,    &il_del_sync,
    &il_del_sync_free,  &il_sooner,       &il_two_writers, &il_moved_head,
    &il_disable,        &il_deinit,       &il_stop,        &il_lock,
    &il_lock_return,    &il_mod_pass,     &il_arm_sleep,   &il_wake,
    &il_wake_two,       &il_wake_flag,    &il_bh,          &il_bh_delete,
    &il_bh_close,       &il_warp_arm,     &il_warp_jump,   &il_warp_list_goes,
    &il_warp_configure, &il_short_append, &il_short_move,  &il_short_cancel,
};

static il_result Explore(const il_case *c, int planted)
{
    il_result r;

    il_explore(c, planted, &r);
    printf("    %s/%d: %lu orders, %lu cut short, up to %u steps%s%s\n", c->name, planted, r.runs,
           r.pruned, r.depth, r.failed ? "; " : "", r.why);
    return r;
}

static std::string ReplayString(const il_case *c, int planted, const il_result &r)
{
    return std::string(c->name) + "/" + std::to_string(planted) + ":" + r.schedule;
}

class Interleave : public testing::TestWithParam<const il_case *>
{
};

TEST_P(Interleave, HoldsInEveryOrder)
{
    il_result r = Explore(GetParam(), 0);

    EXPECT_FALSE(r.failed) << r.why
                           << "\nAIOCTX_INTERLEAVE_REPLAY=" << ReplayString(GetParam(), 0, r);
    EXPECT_GT(r.runs, 1u) << "the threads never meet";
}

TEST_P(Interleave, EachPlantedFaultIsFoundAndReplayed)
{
    const il_case *c = GetParam();

    ASSERT_NE(c->plants[0], nullptr);
    for (int i = 0; i < 4 && c->plants[i]; i++) {
        il_result r = Explore(c, i + 1), again;

        ASSERT_TRUE(r.failed) << "not found: " << c->plants[i];
        il_replay(c, i + 1, r.schedule, nullptr, &again);
        EXPECT_TRUE(again.failed) << c->plants[i];
        EXPECT_STREQ(again.why, r.why);
        EXPECT_STREQ(again.schedule, r.schedule);
    }
}

INSTANTIATE_TEST_SUITE_P(Cases, Interleave, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<const il_case *> &info) {
                             return std::string(info.param->name);
                         });

/* ---- The scheduler against a model ----------------------------------------------------------- */

/* A program of a few accesses a thread, on a few words, that loads what it loads. */
enum Kind { kLoad, kStore, kStoreSeq, kAdd };

struct Access {
    Kind kind;
    int word;
    unsigned value;
};

using Program = std::vector<std::vector<Access>>; /* by thread */
using Outcome = std::vector<uint64_t>;            /* what was loaded, by thread, then the words */

static const int kWords = 3, kPrograms = 200;
static Program program;
static uint64_t words[kWords];
static Outcome loaded[3];
static std::set<Outcome> outcomes;

static void SetUpProgram()
{
    memset(words, 0, sizeof(words));
    for (Outcome &o : loaded) {
        o.clear();
    }
}

static void RunProgram(int thread)
{
    for (const Access &a : program[thread]) {
        uint64_t *p = &words[a.word];

        switch (a.kind) {
        case kLoad:
            loaded[thread].push_back(ld_seq(p));
            break;
        case kStore:
            st_release(p, a.value);
            break;
        case kStoreSeq:
            st_seq(p, a.value);
            break;
        case kAdd:
            loaded[thread].push_back(fetch_add_seq(p, a.value));
            break;
        }
    }
}

static void NoteOutcome()
{
    Outcome all;

    for (const Outcome &o : loaded) {
        all.insert(all.end(), o.begin(), o.end());
    }
    all.insert(all.end(), words, words + kWords);
    outcomes.insert(all);
}

static std::set<Outcome> OutcomesOfScheduler(const Program &p, il_result *ret)
{
    il_case c = {};

    program = p;
    c.name = "program";
    c.threads = static_cast<int>(p.size());
    c.setup = SetUpProgram;
    c.run = RunProgram;
    c.check = NoteOutcome;
    outcomes.clear();
    il_explore(&c, 0, ret);
    return outcomes;
}

/* Total store order, by walking every state. */
struct Machine {
    struct Thread {
        size_t at = 0;
        Outcome loaded;
        std::vector<std::pair<int, uint64_t>> buffer;
    };
    std::vector<Thread> threads;
    std::vector<uint64_t> words = std::vector<uint64_t>(kWords);
};

static uint64_t LoadOf(const Machine &m, const Machine::Thread &t, int word)
{
    for (size_t i = t.buffer.size(); i-- > 0;) {
        if (t.buffer[i].first == word) {
            return t.buffer[i].second;
        }
    }
    return m.words[word];
}

/* Takes the thread's next step, if it can. */
static bool Step(const Program &p, Machine *m, size_t thread)
{
    Machine::Thread &t = m->threads[thread];

    if (t.at == p[thread].size()) {
        return false;
    }
    const Access &a = p[thread][t.at];

    if ((a.kind == kStoreSeq || a.kind == kAdd) && !t.buffer.empty()) {
        return false;
    }
    t.at++;
    switch (a.kind) {
    case kLoad:
        t.loaded.push_back(LoadOf(*m, t, a.word));
        break;
    case kStore:
        t.buffer.emplace_back(a.word, a.value);
        break;
    case kStoreSeq:
        m->words[a.word] = a.value;
        break;
    case kAdd:
        t.loaded.push_back(m->words[a.word]);
        m->words[a.word] += a.value;
        break;
    }
    return true;
}

static std::vector<uint64_t> KeyOf(const Machine &m)
{
    std::vector<uint64_t> key(m.words);

    for (const Machine::Thread &t : m.threads) {
        key.push_back(t.at);
        key.push_back(t.buffer.size());
        for (const auto &store : t.buffer) {
            key.push_back(store.second); /* its word follows from `at` */
        }
        key.insert(key.end(), t.loaded.begin(), t.loaded.end());
    }
    return key;
}

static void Walk(const Program &p, const Machine &m, std::set<std::vector<uint64_t>> *been,
                 std::set<Outcome> *found)
{
    bool stuck = true;

    if (!been->insert(KeyOf(m)).second) {
        return;
    }
    for (size_t i = 0; i < m.threads.size(); i++) {
        Machine next = m;

        if (Step(p, &next, i)) {
            stuck = false;
            Walk(p, next, been, found);
        }
        if (!m.threads[i].buffer.empty()) {
            next = m;
            auto &buffer = next.threads[i].buffer;
            next.words[buffer[0].first] = buffer[0].second;
            buffer.erase(buffer.begin());
            stuck = false;
            Walk(p, next, been, found);
        }
    }
    if (stuck) {
        Outcome all;

        for (const Machine::Thread &t : m.threads) {
            all.insert(all.end(), t.loaded.begin(), t.loaded.end());
        }
        all.insert(all.end(), m.words.begin(), m.words.end());
        found->insert(all);
    }
}

static std::set<Outcome> OutcomesOfModel(const Program &p)
{
    std::set<std::vector<uint64_t>> been;
    std::set<Outcome> found;
    Machine m;

    m.threads.resize(p.size());
    Walk(p, m, &been, &found);
    return found;
}

TEST(Scheduler, ShowsAStoreThatIsStillInItsBuffer)
{
    const Program weak = { { { kStore, 0, 1 }, { kLoad, 1, 0 } },
                           { { kStore, 1, 1 }, { kLoad, 0, 0 } } };
    const Program strong = { { { kStoreSeq, 0, 1 }, { kLoad, 1, 0 } },
                             { { kStoreSeq, 1, 1 }, { kLoad, 0, 0 } } };
    const Outcome both_missed = { 0, 0, 1, 1, 0 };
    il_result r;

    EXPECT_EQ(OutcomesOfScheduler(weak, &r).count(both_missed), 1u);
    EXPECT_EQ(OutcomesOfScheduler(strong, &r).count(both_missed), 0u);
    EXPECT_EQ(r.runs, 3u) << "each missed the other's, or neither did";
}

TEST(Scheduler, RunsWhatDoesNotMeetOnce)
{
    const Program apart = { { { kStoreSeq, 0, 1 }, { kAdd, 0, 1 } },
                            { { kStoreSeq, 1, 1 }, { kAdd, 1, 1 } } };
    il_result r;

    EXPECT_EQ(OutcomesOfScheduler(apart, &r).size(), 1u);
    EXPECT_EQ(r.runs, 1u);
}

static Program RandomProgram(std::mt19937 &random, size_t threads)
{
    Program p(threads);

    for (size_t t = 0; t < threads; t++) {
        for (size_t n = threads == 3 ? 2 + random() % 2 : 4; n > 0; n--) {
            int word = static_cast<int>(random() % kWords);
            Kind kind = static_cast<Kind>(random() % 4);
            size_t done = p[t].size();

            /* One thread's stores to a word may be in a buffer; interleave_model.c says why. */
            if (kind == kStore && word % threads != t) {
                kind = kLoad;
            }
            /* A third load of the same would wait, as if it was a loop. */
            if (kind == kLoad && done >= 2 && p[t][done - 1].kind == kLoad &&
                p[t][done - 2].kind == kLoad) {
                kind = kAdd;
            }
            p[t].push_back({ kind, word, 1 + static_cast<unsigned>(random() % 3) });
        }
    }
    return p;
}

/* Of random programs, the search finds each outcome that total store order has, and no other. */
TEST(Scheduler, FindsTheOutcomesOfTotalStoreOrder)
{
    std::mt19937 random(20);
    unsigned long runs = 0;
    size_t found = 0;

    for (int i = 0; i < kPrograms; i++) {
        Program p = RandomProgram(random, i % 3 == 0 ? 3 : 2);
        il_result r;
        std::set<Outcome> seen = OutcomesOfScheduler(p, &r);

        ASSERT_FALSE(r.failed) << "program " << i << ": " << r.why;
        ASSERT_EQ(seen, OutcomesOfModel(p)) << "program " << i;
        runs += r.runs;
        found += seen.size();
    }
    printf("    %d programs: %lu orders, %zu outcomes\n", kPrograms, runs, found);
}

/* ---- What ends a run ------------------------------------------------------------------------- */

static void RunSpinners(int thread)
{
    while (ld_acquire(&words[!thread]) == 0) {
    }
    st_release(&words[thread], 1);
}

TEST(Scheduler, FindsThreadsThatWaitForEachOther)
{
    il_case c = {};
    il_result r;

    c.name = "spinners";
    c.threads = 2;
    c.setup = SetUpProgram;
    c.run = RunSpinners;
    il_explore(&c, 0, &r);
    EXPECT_TRUE(r.failed);
    EXPECT_NE(strstr(r.why, "nobody can go on"), nullptr) << r.why;
}

static void RunSpinner(int thread)
{
    if (thread == 0) {
        while (ld_acquire(&words[0]) == 0) {
        }
    } else {
        st_release(&words[0], 1);
    }
}

TEST(Scheduler, LetsAThreadSpinUntilItSeesAStore)
{
    il_case c = {};
    il_result r;

    c.name = "spinner";
    c.threads = 2;
    c.setup = SetUpProgram;
    c.run = RunSpinner;
    il_explore(&c, 0, &r);
    EXPECT_FALSE(r.failed) << r.why;
}

/* ---- Replay ---------------------------------------------------------------------------------- */

static int Replay(const std::string &text)
{
    size_t slash = text.find('/'), colon = text.find(':');

    for (const il_case *c : kCases) {
        if (slash != std::string::npos && colon != std::string::npos && slash < colon &&
            text.substr(0, slash) == c->name) {
            il_result r;

            il_replay(c, atoi(text.c_str() + slash + 1), text.c_str() + colon + 1, stdout, &r);
            printf("%s%s\n", r.failed ? "fails: " : "holds", r.why);
            return r.failed;
        }
    }
    fprintf(stderr, "AIOCTX_INTERLEAVE_REPLAY: expected CASE/FAULT:SCHEDULE, as in "
                    "ModBesideDel/1:1:0x2.1.a\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *replay = getenv("AIOCTX_INTERLEAVE_REPLAY");

    testing::InitGoogleTest(&argc, argv);
    if (replay && *replay) {
        return Replay(replay);
    }
    alarm(100);
    return RUN_ALL_TESTS();
}
