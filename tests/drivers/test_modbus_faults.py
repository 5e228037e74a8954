"""What a device leaves out, refuses or gets wrong: bad points and a poll that goes on, never another point's registers."""

import pytest
from register_link import Registers, driver, plain, template
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.control import Applied, Failed, Rejected
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.modbus.link import RefusedError
from wattmesh_drivers.modbus.sunspec import model_definition, place_of


def sunspec_device(*models):
    """Registers of a chain of models (number, content after ID and L)."""
    words = [0x5375, 0x6E53]
    for model, content in models:
        words += [model, len(content), *content]
    return dict(enumerate([*words, 0xFFFF, 0], 40000))


def meter_content(length=50, exponent=0):
    """Model 103 with W = 1234 and TmpCab = 30, cut to its length."""
    content = [0] * 50
    definition = {}
    at = 0
    for point in model_definition(103)["points"]:
        definition[point["name"]] = at
        at += point["size"]
    content[definition["W"] - 2] = 1234
    content[definition["W_SF"] - 2] = exponent & 0xFFFF
    content[definition["TmpCab"] - 2] = 30
    return content[:length]


SUNSPEC = [
    {"id": "active_power_w", "model": 103, "point": "W"},
    {"id": "temperature_cabinet_degc", "model": 103, "point": "TmpCab"},
]


async def test_points_past_the_length_of_a_model_are_bad_and_never_the_next_models_registers():
    cut = Registers(sunspec_device((103, meter_content(20)), (64000, [77] * 60)))
    made = driver(cut, template(SUNSPEC, protocol="sunspec"))
    assert await made.poll()
    values = as_mapping(made)
    assert values["active_power_w"] == (1234.0, Quality.GOOD)
    assert values["temperature_cabinet_degc"][1] == Quality.BAD
    assert made.register_of("temperature_cabinet_degc") is None


@pytest.mark.parametrize(("count", "length", "good"), [(2, 48, 2), (1, 48, 1), (0xFFFF, 28, 1), (2, 36, 1)])
async def test_a_repetition_that_the_device_does_not_have_is_bad(count, length, good):
    content = [0] * 6 + [count, 0] + ([0] * 20) * 2
    voltage = place_of(160, 0, "DCV", group="module").address - 2
    for index in range(2):
        content[voltage + 20 * index] = 400 + index
    link = Registers(sunspec_device((103, meter_content()), (160, content[:length]), (64000, [77] * 60)))
    strings = [
        {"id": f"string_{n}_voltage_v", "model": 160, "group": "module", "index": n, "point": "DCV"} for n in range(2)
    ]
    made = driver(link, template([*SUNSPEC, *strings], protocol="sunspec"))
    assert await made.poll()
    values = as_mapping(made)
    for index in range(2):
        assert (values[f"string_{index}_voltage_v"] == (400.0 + index, Quality.GOOD)) == (index < good)


def test_a_group_after_another_is_found_after_it():
    first = place_of(704, 0, "PF", group="PFWInj").address
    assert place_of(704, 0, "PF", group="PFWInjRvrt").address > first


@pytest.mark.parametrize("exponent", [11, -11, 0x7FFF, -0x7FFF, -0x8000])
async def test_a_scale_factor_outside_the_standards_range_is_none(exponent):
    made = driver(
        Registers(sunspec_device((103, meter_content(exponent=exponent)))), template(SUNSPEC, protocol="sunspec")
    )
    assert await made.poll()
    assert as_mapping(made)["active_power_w"][1] == Quality.BAD
    assert as_mapping(made)["temperature_cabinet_degc"] == (30.0, Quality.GOOD)


async def test_a_block_refused_after_good_polls_is_read_anew_in_the_same_poll():
    registers = dict.fromkeys(range(11), 5)
    made = driver(Registers(registers), template([plain("active_power_w", 0), plain("current_a", 10)]))
    assert await made.poll()
    assert len(made._plans) == 1
    del registers[4]  # a hole
    registers[0] = registers[10] = 6
    assert await made.poll()
    assert list(made.values) == [6.0, 6.0]


async def test_a_point_refused_after_good_polls_is_bad_at_once_and_asked_again_later(caplog):
    registers = dict.fromkeys(range(11), 5)
    clock = ManualClock()
    points = [plain("active_power_w", 0), plain("current_a", 1), plain("voltage_v", 10)]
    made = driver(Registers(registers), template(points), clock)
    assert await made.poll()
    del registers[1]
    for _ in range(3):
        assert await made.poll()
        assert bytes(made.qualities) == bytes([Quality.GOOD, Quality.BAD, Quality.GOOD])
        assert made.values[1] != made.values[1]
    assert [record.message for record in caplog.records].count(
        "d refuses the registers of current_a: no data for these"
    ) == 1
    registers[1] = 8
    await clock.advance(301)
    assert await made.poll()
    assert as_mapping(made)["current_a"] == (8.0, Quality.GOOD)
    assert clock.monotonic_ns() >= 300 * NS_PER_S


async def test_a_refused_hole_inside_a_sync_group_is_bad_points_and_one_line(caplog):
    registers = {0: 1, 2: 3, 5: 9}
    points = [plain("voltage_l1_v", 0, sync="u"), plain("voltage_l2_v", 2, sync="u"), plain("active_power_w", 5)]
    made = driver(Registers(registers), template(points))
    for _ in range(2):
        assert await made.poll()
        assert bytes(made.qualities) == bytes([Quality.BAD, Quality.BAD, Quality.GOOD])
    assert len(caplog.records) == 1
    assert "voltage_l1_v, voltage_l2_v" in caplog.records[0].message


async def test_a_device_that_refuses_everything_is_lost_and_comes_back():
    registers = dict.fromkeys(range(11), 5)
    kept = dict(registers)
    made = driver(Registers(registers), template([plain("active_power_w", 0), plain("current_a", 10)]))
    assert await made.poll()
    registers.clear()
    assert not await made.poll()
    assert set(made.qualities) == {Quality.BAD}
    registers.update(kept)
    made._retry_at = 0.0
    assert await made.poll()
    assert set(made.qualities) == {Quality.GOOD}


async def test_a_sync_group_too_long_for_a_request_is_a_failed_poll():
    points = [plain("active_power_w", 0, sync="u"), plain("current_a", 200, sync="u")]
    made = driver(Registers(dict.fromkeys(range(201), 1)), template(points))
    assert not await made.poll()


@pytest.mark.parametrize(("asked", "function"), [(None, 6), (6, 6), (16, 16)])
async def test_a_location_names_the_function_that_the_template_wants(asked, function):
    more = {"write_function": asked} if asked else {}
    made = driver(Registers({0: 1}), template([plain("active_power_w", 0)], settings=[plain("limit_w", 7, **more)]))
    await made.connect()
    assert made.register_of("limit_w").write_function == function


def test_function_6_cannot_write_a_wide_value():
    with pytest.raises(ValueError, match="function 6 writes one register"):
        template([plain("active_power_w", 0)], settings=[plain("limit_w", 7, write_function=6, type="u32")])


async def test_a_device_that_is_another_one_is_let_go():
    link = Registers({register: 0 for base in (40000, 0, 50000) for register in (base, base + 1)})
    made = driver(link, template(SUNSPEC, protocol="sunspec"))
    with pytest.raises(ConfigurationError, match="no SunSpec map"):
        await made.connect()
    assert link.opened == link.closed == 1


async def test_nothing_is_written_without_a_limit(bench):
    battery = bench.driver("battery", "sunspec_battery", rated_power_w=None)
    await battery.poll()
    outcome = await battery.control("active_power_w", 10.0)
    assert isinstance(outcome, Rejected)
    assert "rated_power_w" in outcome.reason
    assert bench.home.writes == 0


# -- what a template can say beyond one register


class Limited(Registers):
    """A device that refuses long requests with exception 3."""

    def __init__(self, registers, longest):
        super().__init__(registers)
        self.longest, self.asked = longest, []

    async def read(self, function, address, count):
        self.asked.append(count)
        if count > self.longest:
            raise RefusedError(3, "value refused")
        return await super().read(function, address, count)


async def test_a_request_that_is_too_long_is_shortened_and_stays_short():
    link = Limited({register: register for register in range(200)}, 20)
    made = driver(link, template([plain("active_power_w", 0), *(plain(f"p{at}", at) for at in range(10, 100, 10))]))
    assert await made.poll()
    assert as_mapping(made)["p90"] == (90.0, Quality.GOOD)
    shortened = made.counters["shortened"]
    assert shortened >= 2
    link.asked.clear()
    assert await made.poll()
    assert max(link.asked) <= 20
    assert made.counters["shortened"] == shortened


async def test_a_value_that_is_refused_whatever_its_length_is_no_endless_loop():
    link = Limited(dict.fromkeys(range(10), 1), 0)
    made = driver(link, template([plain("active_power_w", 0), plain("p5", 5)]))
    assert not await made.poll()
    assert len(link.asked) < 10


@pytest.mark.parametrize("refused", [False, True])
async def test_words_that_lie_apart_are_one_value_in_one_block_or_two(refused):
    registers = {100: 0xFFFF - 499, 160: 0xFFFF, 130: 7}
    if not refused:
        registers |= {register: 0 for register in range(100, 161) if register not in registers}
    points = [
        plain("active_power_w", 100, type="s32", high_address=160, scale=0.1),
        plain("other", 130),
    ]
    made = driver(Registers(registers), template(points))
    assert await made.poll()
    assert as_mapping(made) == {
        "active_power_w": (pytest.approx(-50.0), Quality.GOOD),
        "other": (7.0, Quality.GOOD),
    }


async def test_of_words_that_lie_apart_half_a_value_is_none():
    made = driver(
        Registers({100: 5, 130: 7}),
        template([plain("active_power_w", 100, type="s32", high_address=160), plain("other", 130)]),
    )
    assert await made.poll()
    assert as_mapping(made)["active_power_w"][1] == Quality.BAD
    assert as_mapping(made)["other"] == (7.0, Quality.GOOD)


async def test_an_offset_is_added_after_scaling():
    made = driver(Registers({0: 1250}), template([plain("active_power_w", 0, scale=0.1, offset=-100)]))
    assert await made.poll()
    assert as_mapping(made)["active_power_w"][0] == pytest.approx(25.0)


async def test_a_sum_is_as_good_as_the_worst_of_its_terms():
    points = [
        plain("charge_power_w", 0),
        plain("discharge_power_w", 1, sentinel=0xFFFF),
        {"id": "active_power_w", "sum": {"charge_power_w": 1, "discharge_power_w": -1}},
    ]
    link = Registers({0: 100, 1: 30})
    made = driver(link, template(points))
    assert await made.poll()
    assert as_mapping(made)["active_power_w"] == (70.0, Quality.GOOD)
    link.registers[1] = 0xFFFF
    assert await made.poll()
    value, quality = as_mapping(made)["active_power_w"]
    assert quality == Quality.BAD
    assert value != value


@pytest.mark.parametrize(("content", "told"), [({40: 3}, "holds 3: set it to H"), ({}, "is refused: set it to H")])
async def test_a_device_that_is_set_up_in_another_way_is_not_read(content, told):
    made = driver(
        Registers({0: 1} | content),
        template([plain("active_power_w", 0)], identity=[{"address": 40, "one_of": [7], "hint": "set it to H"}]),
    )
    with pytest.raises(ConfigurationError, match=told):
        await made.connect()
    assert as_mapping(made)["active_power_w"][1] == Quality.BAD
    made = driver(
        Registers({0: 1, 40: 7}),
        template([plain("active_power_w", 0)], identity=[{"address": 40, "one_of": [7], "hint": "set it to H"}]),
    )
    assert await made.poll()


def forced(**more):
    """A battery with a mode, a command by direction and a magnitude, as many hybrids have it."""
    return template(
        [plain("active_power_w", 0), plain("soc_percent", 1)], kind="battery",
        settings=[plain("mode", 10), plain("command", 11), plain("power_w", 12, maximum=3000)],
        controls={"active_power_w": {
            "steps": [
                {"setting": "mode", "value": 2},
                {"setting": "power_w", "value": "magnitude"},
                {"setting": "command", "value": {"charge": 0xAA, "discharge": 0xBB, "idle": 0xCC}},
            ],
            "release": [{"setting": "mode", "value": 0}, {"setting": "command", "value": 0xCC}],
        } | more},
        safe_state={"active_power_w": 0},
    )  # fmt: skip


async def test_only_what_differs_is_written_and_in_the_steps_order():
    link = Registers({0: 0, 1: 50})
    made = driver(link, forced(), rated_power_w=5000)
    assert await made.poll()
    for value, wanted in (
        (800, [(12, 0), (10, 2), (11, 0xAA), (12, 800)]),  # what it held is not known: nothing before the direction
        (900, [(12, 900)]),
        (900, []),
        (-900, [(11, 0xBB)]),
        (300, [(12, 300), (11, 0xAA)]),  # less before the new direction
        (-2000, [(11, 0xBB), (12, 2000)]),  # more after it
        (0, [(12, 0), (11, 0xCC)]),
    ):
        link.written.clear()
        assert await made.control("active_power_w", value) == Applied(value=value)
        assert [(address, registers[0]) for _, address, registers in link.written] == wanted


async def test_a_control_that_wants_it_writes_every_step_of_a_change():
    link = Registers({0: 0, 1: 50})
    made = driver(link, forced(whole=True), rated_power_w=5000)
    assert await made.poll()
    for value, count in ((800, 4), (900, 3), (900, 0)):
        link.written.clear()
        assert await made.control("active_power_w", value) == Applied(value=value)
        assert len(link.written) == count


async def test_a_setting_outside_its_own_limits_is_rejected_and_nothing_is_written():
    link = Registers({0: 0, 1: 50})
    made = driver(link, forced(), rated_power_w=5000)
    assert await made.poll()
    outcome = await made.control("active_power_w", -3500)
    assert isinstance(outcome, Rejected)
    assert "power_w = 3500, outside -inf..3000" in outcome.reason
    assert link.written == []


async def test_a_battery_is_given_back_when_the_gateway_ends_in_order():
    link = Registers({0: 0, 1: 50})
    made = driver(link, forced(), rated_power_w=5000)
    assert await made.poll()
    await made.control("active_power_w", 800)
    link.written.clear()
    assert await made.release() == [Applied(value=0.0)]
    assert [(address, registers[0]) for _, address, registers in link.written] == [(10, 0), (11, 0xCC)]
    link.written.clear()
    assert await made.control("active_power_w", 800) == Applied(value=800)
    assert len(link.written) == 4, "and taken again as a whole, from 0 on"


class Breaking(Registers):
    """Loses the answer of one write: of the so manieth."""

    lost = None

    async def write(self, function, address, registers):
        await super().write(function, address, registers)
        self.registers[address] = registers[0]
        if len(self.written) == self.lost:
            raise UnavailableError("no answer")


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
@pytest.mark.parametrize(("before", "after"), [(100, -3000), (3000, -100), (-3000, 3000), (None, 2000), (2000, 0)])
async def test_whatever_write_is_lost_no_power_is_stronger_than_both_ends_nor_the_wrong_way_round(before, after, lost):
    link = Breaking({0: 0, 1: 50, 10: 2, 11: 0xBB, 12: 0})
    clock = ManualClock()
    made = driver(link, forced(minimum_interval_ms=5000, storage="flash", writes_per_day=2), clock, rated_power_w=5000)
    assert await made.poll()
    if before is not None:
        assert await made.control("active_power_w", before) == Applied(value=before)
        await clock.advance(10)
    link.written.clear()
    link.lost = lost
    outcome = await made.control("active_power_w", after)
    power = {0xAA: 1, 0xBB: -1, 0xCC: 0}[link.registers[11]] * link.registers[12]
    assert abs(power) <= max(abs(before or 0), abs(after))
    if before is None:
        assert power in {0, after}, "of what it did before nothing is known, so it does nothing"
    elif before * after < 0:
        assert power * after >= 0 or abs(power) <= min(abs(before), abs(after)), (
            "the old way only with the weaker power"
        )
    if not isinstance(outcome, Applied):
        link.lost = None
        assert await made.poll()
        assert await made.control("active_power_w", after) == Applied(value=after), (
            "at once: no pace and no budget against it"
        )
    assert {0xAA: 1, 0xBB: -1, 0xCC: 0}[link.registers[11]] * link.registers[12] == after


async def test_a_mode_that_reads_back_as_its_neighbour_is_failed_and_a_rounded_power_is_not():
    class Stubborn(Registers):
        off = ()

        async def write(self, function, address, registers):
            await super().write(function, address, registers)
            self.registers[address] = registers[0] + (address in self.off)

    for off, kind in (((11,), Failed), ((10,), Failed), ((12,), Applied), ((), Applied)):
        link = Stubborn({0: 0, 1: 50})
        link.off = off
        made = driver(link, forced(readback=["mode", "command", "power_w"]), rated_power_w=5000)
        assert await made.poll()
        assert isinstance(await made.control("active_power_w", 800), kind), off


async def test_the_safe_state_is_written_whatever_the_driver_believes():
    link = Registers({0: 0, 1: 50})
    made = driver(link, forced(), rated_power_w=5000)
    assert await made.poll()
    assert await made.apply_safe_state() == [Applied(value=0)]
    link.written.clear()  # somebody else writes meanwhile
    assert await made.apply_safe_state() == [Applied(value=0)]
    assert {address for _, address, _ in link.written} == {10, 11, 12}


async def test_less_power_is_taken_whatever_the_budget_says_and_more_is_not():
    link = Registers({0: 0, 1: 50})
    made = driver(link, forced(storage="flash", writes_per_day=10, minimum_interval_ms=0), rated_power_w=5000)
    assert await made.poll()
    power = 1000
    while isinstance(await made.control("active_power_w", power), Applied):
        power += 100
    assert isinstance(await made.control("active_power_w", 500), Applied), "less"
    assert isinstance(await made.control("active_power_w", 900), Rejected), "more"
    assert isinstance(await made.control("active_power_w", 0), Applied), "none"
    made._flash_writes["active_power_w"] = (made._flash_writes["active_power_w"][0], 1000)
    made._standing["active_power_w"] = 900.0
    assert isinstance(await made.control("active_power_w", 800), Rejected), "not without end"
    assert isinstance(await made.control("active_power_w", 0), Applied)


async def test_a_clock_that_is_set_back_opens_no_new_budget():
    link = Registers({0: 0, 1: 50})
    clock = ManualClock(0)  # 1970
    kept = {"active_power_w": (20_000, 499)}
    made = driver(link, forced(storage="flash", writes_per_day=500), clock, rated_power_w=5000, flash_writes=kept)
    assert await made.poll()
    made._flash_writes["active_power_w"] = (20_000, 49)  # of the 50 that a day begins with
    assert isinstance(await made.control("active_power_w", 100), Applied)
    assert kept["active_power_w"] == (20_000, 50)
    assert isinstance(await made.control("active_power_w", 200), Rejected)


def sunspec_words(power, exponent):
    content = meter_content(exponent=exponent)
    content[place_of(103, 0, "W").address - 2] = power
    return sunspec_device((103, content))


async def test_a_scale_factor_that_moves_while_the_device_runs_is_followed_in_the_same_poll():
    link = Registers(sunspec_words(800, 0))
    made = driver(link, template(SUNSPEC, protocol="sunspec"))
    assert await made.poll()
    assert as_mapping(made)["active_power_w"] == (800.0, Quality.GOOD)
    link.registers.update(sunspec_words(8000, -1))
    assert await made.poll()
    assert as_mapping(made)["active_power_w"] == (pytest.approx(800.0), Quality.GOOD)
    link.registers.update(sunspec_words(8000, -0x8000))
    assert await made.poll()
    assert as_mapping(made)["active_power_w"][1] == Quality.BAD


@pytest.mark.parametrize(
    ("point", "word", "quality"),
    [
        (plain("soc_percent", 1, minimum=0, maximum=100), 0xFFFF, Quality.BAD),
        (plain("soc_percent", 1, minimum=0, maximum=100), 101, Quality.GOOD),
        (plain("frequency_hz", 1, scale=0.01), 65000, Quality.BAD),
        (plain("frequency_hz", 1, scale=0.01), 5000, Quality.GOOD),
        (plain("temperature_x_degc", 1), 900, Quality.BAD),
    ],
)
async def test_what_cannot_be_is_bad(point, word, quality):
    made = driver(Registers({0: 1, 1: word}), template([plain("active_power_w", 0), point]))
    assert await made.poll()
    assert made.qualities[1] == quality


async def test_a_power_far_beyond_the_rating_is_bad():
    made = driver(Registers({0: 40_000}), template([plain("active_power_w", 0)]), rated_power_w=5000)
    assert await made.poll()
    assert made.qualities[0] == Quality.BAD


async def test_a_frozen_meter_is_found_out_though_some_of_its_points_are_not_there():
    clock = ManualClock()
    points = [plain("active_power_w", 0), plain("voltage_l1_v", 1), plain("voltage_l2_v", 50)]
    frozen = {"points": ["active_power_w", "voltage_l1_v", "voltage_l2_v"], "seconds": 5, "polls": 3}
    link = Registers({0: 100, 1: 230})
    made = driver(link, template(points, frozen=frozen), clock)
    answered = []
    for _ in range(8):
        answered.append(await made.poll())
        await clock.advance(2)
    assert answered[:3] == [True] * 3
    assert answered[-2:] == [False] * 2
    link.registers[1] = 231
    assert await made.poll()


async def test_registers_of_one_maker_are_not_another_ones():
    beside = [*SUNSPEC, plain("own", 500)]
    words = sunspec_device((1, [int.from_bytes(b"Fr"), int.from_bytes(b"on"), *[0] * 64]), (103, meter_content()))
    made = driver(Registers(words | {500: 7}), template(beside, protocol="sunspec", makes=["SolarEdge"]))
    with pytest.raises(ConfigurationError, match="is for SolarEdge, and the device says that Fron made it"):
        await made.connect()
    made = driver(Registers(words | {500: 7}), template(beside, protocol="sunspec", makes=["fron"]))
    assert await made.poll()
    with pytest.raises(ValueError, match="name the makers"):
        template(beside, protocol="sunspec")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"release": [{"setting": "mode", "value": "target"}]}, "release has no target"),
        ({"release": [{"setting": "nothing", "value": 1}]}, "'nothing', which is not among the settings"),
        ({"steps": [{"setting": "mode", "value": 2}]}, "never writes its target"),
        ({"storage": "flash"}, "needs writes_per_day"),
    ],
)
def test_a_control_that_cannot_be_is_told(change, told):
    with pytest.raises(ValueError, match=told):
        forced(**change)
