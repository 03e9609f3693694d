"""Coroutines of coblk in gdb, in a live process or a core file. See docs/debugging.md.

    (gdb) source docs/gdb/coblk.py
    (gdb) coblk coroutines              lists the coroutines of all contexts
    (gdb) coblk bt ID|ADDRESS|all       shows where one, or each, is suspended
    (gdb) coblk apply ID COMMAND        runs a command, such as "bt full", on its stack

Nothing is written to the process, neither memory nor registers. To show a suspended coroutine, gdb
is told that the frame below the thread's innermost one is where the coroutine suspended; for as
long as the command takes. So it works on a core file as well.

Contexts are found through a map in a section of the program, `.coblk_map`; what is in it is in
crates/aio/src/context/debug_map.rs. It holds offsets, so neither type information nor symbols are needed; but
without symbols functions have no names.
"""

import re
import struct

import gdb
import gdb.unwinder

SECTION = ".coblk_map"
TITLE = b"coblk map 1"
STATES = ["created", "entered", "suspended", "terminated"]
SUSPENDED, ENTERED, MISSING = "suspended", "entered", "missing"
COROSENSEI, UCONTEXT = 1, 2

# Where the functions are that run a coroutine's closure.
START = re.compile(r"coroutine[^/]*/src/coroutine/entry\.rs$")

# More than any sound program has; a list that is longer was read while it changed, or is damaged.
MOST = 10_000_000

# Where `ucontext_t` of x86_64 has its registers: after two words and a `stack_t`.
UCONTEXT_REGISTERS = 40
UCONTEXT_ORDER = (
    "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip".split()
)


class Memory:
    """What the process has in memory, or had when its core was written."""

    @staticmethod
    def bytes(address, count):
        if count == 0:
            return b""
        return gdb.selected_inferior().read_memory(address, count).tobytes()

    @classmethod
    def words(cls, address, count):
        return struct.unpack(f"<{count}Q", cls.bytes(address, 8 * count))

    @classmethod
    def word(cls, address):
        return cls.words(address, 1)[0]

    @classmethod
    def numbers(cls, address, count):
        return struct.unpack(f"<{count}I", cls.bytes(address, 4 * count))


class Map:
    """The map in the program."""

    def __init__(self):
        self.address = Map.find()
        title = Memory.words(self.address, 2)
        # A `&str` is two words, in no promised order; one of them is the length.
        self.length_first = title[0] == len(TITLE)
        if len(TITLE) not in title or self.text_at(self.address).encode() != TITLE:
            raise gdb.GdbError("this program's coblk is of another version than this script")
        self.contexts, self.count = Memory.words(self.address + 16, 2)
        numbers = iter(Memory.numbers(self.address + 32, 15))
        fields = lambda names: dict(zip(names.split(), numbers))
        self.context = fields("me first_task")
        self.task = fields("next inner name waits_for coroutine")
        self.control = fields("state id name bottom length backend saved saved_bytes")

    @staticmethod
    def find():
        if not any(thread.is_valid() for thread in gdb.selected_inferior().threads()):
            raise gdb.GdbError("there is no process and no core file")
        files = gdb.execute("info files", to_string=True)
        section = re.search(rf"(0x[0-9a-f]+) - 0x[0-9a-f]+ is {re.escape(SECTION)}\b", files)
        if section is None:
            raise gdb.GdbError("there is no coblk in this program")
        return int(section.group(1), 16)

    def text_at(self, address):
        words = Memory.words(address, 2)
        length, start = words if self.length_first else words[::-1]
        if length > 4096:
            return "?"
        return Memory.bytes(start, length).decode("utf-8", "replace")

    def live_contexts(self):
        """Of each context its address and name."""
        for index in range(min(self.count, MOST)):
            inner, name, length = Memory.words(self.contexts + 24 * index, 3)
            if Memory.word(inner + self.context["me"]) == inner:
                yield inner, Memory.bytes(name, length).decode("utf-8", "replace")

    def coroutines_of(self, inner):
        """The coroutines of a context, the youngest first."""
        task = Memory.word(inner + self.context["first_task"])
        for _ in range(MOST):
            if task == 0:
                return
            if Memory.word(task + self.task["inner"]) != inner:
                raise gdb.GdbError(f"the list of coroutines is damaged at 0x{task:x}")
            control = Memory.word(task + self.task["coroutine"])
            if control != 0:
                waits_for = self.text_at(task + self.task["waits_for"])
                yield Coroutine(self, control, waits_for)
            task = Memory.word(task + self.task["next"])

    def coroutines(self):
        for inner, _ in self.live_contexts():
            yield from self.coroutines_of(inner)

    def chosen(self, text):
        """The coroutine with an id, or at an address."""
        try:
            number = int(text, 0)
        except ValueError:
            number = int(gdb.parse_and_eval(text))
        for coroutine in self.coroutines():
            if number in (coroutine.id, coroutine.control):
                return coroutine
        # One that belongs to no context has to be named by its address.
        try:
            coroutine = Coroutine(self, number, "")
            if coroutine.holds(number):
                return coroutine
        except (gdb.error, OverflowError):
            pass
        raise gdb.GdbError(f"{text} is neither the id of a coroutine nor the address of one")


class Coroutine:
    """One coroutine, as it is now."""

    def __init__(self, map, control, waits_for):
        layout = map.control
        self.control = control
        self.id = Memory.word(control + layout["id"])
        self.name = map.text_at(control + layout["name"])
        state = Memory.bytes(control + layout["state"], 1)[0]
        self.state = STATES[state] if state < len(STATES) else f"state {state}?"
        self.bottom = Memory.word(control + layout["bottom"])
        self.end = self.bottom + Memory.word(control + layout["length"])
        if self.end == self.bottom:
            # All zero: what lies on stacks was left out of the core file.
            self.state = MISSING
        self.waits_for = waits_for if self.state == SUSPENDED else ""
        self.backend = layout["backend"]
        self.saved = control + layout["saved"]
        self.saved_bytes = layout["saved_bytes"]

    def holds(self, address):
        """Whether an address lies on its stack."""
        return self.bottom <= address < self.end

    def __str__(self):
        return f"coroutine {self.id} '{self.name}'"

    def registers(self):
        """What its registers were when it suspended."""
        architecture = gdb.selected_frame().architecture().name()
        if architecture != "i386:x86-64":
            raise gdb.GdbError(f"saved registers are known for x86_64 only, not {architecture}")
        if self.backend == UCONTEXT:
            words = Memory.words(self.saved + UCONTEXT_REGISTERS, len(UCONTEXT_ORDER))
            return dict(zip(UCONTEXT_ORDER, words))
        if self.backend != COROSENSEI:
            raise gdb.GdbError(f"unknown backend {self.backend}")
        # Of the words that point to the stack, one is where it suspended, others to its base, one
        # to its very bottom. Nothing that it uses lies below where it suspended.
        words = Memory.words(self.saved, self.saved_bytes // 8)
        pointer = min(word for word in words if self.bottom < word < self.control)
        rip, rbx, rbp = Memory.words(pointer, 3)
        return {"rip": rip, "rbx": rbx, "rbp": rbp, "rsp": pointer + 24}


class Detour(gdb.unwinder.Unwinder):
    """While in use, makes a suspended coroutine the caller of the thread's innermost frame."""

    class FrameId:
        def __init__(self, sp, pc):
            self.sp, self.pc = sp, pc

    def __init__(self):
        super().__init__("coblk")
        self.enabled = False
        self.registers = None
        self.below = None

    def __call__(self, frame):
        if self.registers is None:
            return None
        sp, pc = (int(frame.read_register(name)) & (2**64 - 1) for name in ("rsp", "rip"))
        if (sp, pc) == self.below:
            # gdb takes stacks to grow in one direction, so this frame must seem to lie further down.
            return self.caller(frame, self.registers["rsp"] - 256, pc, self.registers)
        if is_first_frame(pc):
            # Its caller is whoever resumed it last, who has gone on since.
            return self.caller(frame, sp, pc, {"rip": 0, "rsp": sp + 16})
        return None

    def caller(self, frame, sp, pc, registers):
        info = frame.create_unwind_info(Detour.FrameId(self.value(frame, "rsp", sp),
                                                       self.value(frame, "rip", pc)))
        for name, number in registers.items():
            info.add_saved_register(name, self.value(frame, name, number))
        return info

    @staticmethod
    def value(frame, register, number):
        return gdb.Value(number).cast(frame.read_register(register).type)

    def __enter__(self):
        gdb.invalidate_cached_frames()
        return self

    def to(self, coroutine):
        """For use with `with`."""
        self.registers = coroutine.registers()
        frame = gdb.newest_frame()
        self.below = tuple(int(frame.read_register(name)) & (2**64 - 1) for name in ("rsp", "rip"))
        self.enabled = True
        return self

    def __exit__(self, *_):
        self.enabled = False
        self.registers = self.below = None
        gdb.invalidate_cached_frames()


def is_first_frame(pc):
    return "stack_init_trampoline" in symbol_at(pc)


def symbol_at(pc):
    return gdb.execute(f"info symbol 0x{pc:x}", to_string=True)


DETOUR = Detour()
gdb.unwinder.register_unwinder(None, DETOUR, replace=True)


def frames_of(coroutine):
    """The frames on its stack, the innermost first, as the selected thread shows them."""
    frame = gdb.newest_frame()
    entered = False
    while frame is not None and frame.is_valid():
        inside = coroutine.holds(int(frame.read_register("rsp")) & (2**64 - 1))
        if entered and not inside:
            return
        if inside:
            entered = True
            yield frame
        try:
            frame = frame.older()
        except gdb.error as error:
            print(f"    (gdb cannot go on from here: {error})")
            return


def describe(number, frame):
    name = frame.name() or "?"
    if "::" not in name and frame.type() == gdb.NORMAL_FRAME:
        # A build with line tables only has the full name in its symbols, if anywhere.
        symbol = symbol_at(frame.pc() - 1)
        if " + " in symbol:
            name = re.sub("::h[0-9a-f]{16}$", "", symbol.split(" + ")[0])
    line = f"#{number:<2} {without_generics(name)}"
    place = frame.find_sal()
    if place.symtab:
        line += f"\n        at {short(place.symtab.filename)}:{place.line}"
    return line


def without_generics(name):
    """A function's name without what stands between angle brackets."""
    kept, depth = [], 0
    for letter in name:
        depth += letter == "<"
        if depth == 0:
            kept.append(letter)
        depth -= letter == ">" and depth > 0
    return "".join(kept)


def short(path):
    """A path without the place where cargo or rustup keeps sources."""
    return re.sub(r"^.*/(registry/src/[^/]+|rustc/[0-9a-f]+|rustlib/src/rust)/", "", path)


def print_frames(coroutine):
    for number, frame in enumerate(frames_of(coroutine)):
        # From there on it is the same for all: how a coroutine begins.
        place = frame.find_sal().symtab
        if place is not None and START.search(place.filename) or is_first_frame(frame.pc()):
            break
        print(describe(number, frame))


def thread_of(coroutine):
    """Selects the thread that has its frames, and returns it."""
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        if next(frames_of(coroutine), None) is not None:
            return thread
    return None


def backtrace(coroutine):
    if coroutine.state == SUSPENDED:
        waits = f", waits for {coroutine.waits_for}" if coroutine.waits_for else ""
        print(f"{coroutine}, suspended{waits}")
        with DETOUR.to(coroutine):
            print_frames(coroutine)
    elif coroutine.state == ENTERED:
        thread = thread_of(coroutine)
        if thread is None:
            print(f"{coroutine}, entered; on no thread's stack")
        else:
            print(f"{coroutine}, entered, in thread {thread.num}")
            print_frames(coroutine)
    else:
        print(f"{coroutine}, {coroutine.state}: there are no frames")


class Selection:
    """Puts thread and frame back as they were."""

    def __enter__(self):
        self.thread = gdb.selected_thread()
        self.level = gdb.selected_frame().level()

    def __exit__(self, *_):
        self.thread.switch()
        gdb.execute(f"frame {self.level}", to_string=True)


class Coblk(gdb.Command):
    """Coroutines of coblk: "coblk coroutines", "coblk bt ID|ADDRESS|all", "coblk apply ID COMMAND"."""

    def __init__(self):
        super().__init__("coblk", gdb.COMMAND_STACK, prefix=True)


class Coroutines(gdb.Command):
    """Lists the coroutines of all contexts, the youngest first."""

    def __init__(self):
        super().__init__("coblk coroutines", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        map = Map()
        contexts = [(name, list(map.coroutines_of(inner))) for inner, name in map.live_contexts()]
        if not contexts:
            print("no contexts")
        if any(it.state == MISSING for _, coroutines in contexts for it in coroutines):
            print("Stacks are missing: gdb leaves them out of a core that it writes; the kernel does not.")
        everyone = [coroutine for _, coroutines in contexts for coroutine in coroutines]
        names = max((len(it.name) for it in everyone), default=0)
        waits = max((len(it.waits_for) for it in everyone), default=0)
        for name, coroutines in contexts:
            print(f"context '{name}': {len(coroutines)} coroutine{'s' * (len(coroutines) != 1)}")
            for it in coroutines:
                print(f"{it.id:>10}  {it.state:<9}  {it.name:<{names}}  {it.waits_for:<{waits}}"
                      f"  0x{it.control:x}")


class Backtrace(gdb.Command):
    """Shows where a coroutine is: coblk bt ID, coblk bt ADDRESS, coblk bt all."""

    def __init__(self):
        super().__init__("coblk bt", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        if not argument:
            raise gdb.GdbError("coblk bt ID, coblk bt ADDRESS or coblk bt all")
        map = Map()
        chosen = list(map.coroutines()) if argument == "all" else [map.chosen(argument)]
        with Selection():
            for coroutine in chosen:
                backtrace(coroutine)


class Apply(gdb.Command):
    """Runs a command on the stack of a suspended coroutine: coblk apply ID COMMAND.

Frame 0 (and what is inlined in it) is the thread's own, the coroutine's follow; the first of them is
selected."""

    def __init__(self):
        super().__init__("coblk apply", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        chosen, _, command = argument.partition(" ")
        if not command.strip():
            raise gdb.GdbError("coblk apply ID COMMAND")
        coroutine = Map().chosen(chosen)
        if coroutine.state != SUSPENDED:
            raise gdb.GdbError(f"{coroutine} is not suspended")
        with Selection(), DETOUR.to(coroutine):
            next(frames_of(coroutine)).select()
            gdb.execute(command)


Coblk()
Coroutines()
Backtrace()
Apply()
