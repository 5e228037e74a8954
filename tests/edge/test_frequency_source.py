"""A frequency that is no register: what the driver read goes to the reflex, and only what is good."""

from wattmesh_a2a.devices import Quality
from wattmesh_edge.gateway import push_frequency


class Taken(list):
    def push(self, frequency, voltage):
        self.append((frequency, voltage))


async def test_what_a_driver_read_is_pushed_while_it_is_good(devices):
    taken, meter = Taken(), devices["meter"]
    meter.set(frequency_hz=49.99, voltage_l1_v=231.0)
    await meter.poll()
    push_frequency(taken, meter, "frequency_hz", "voltage_l1_v")
    push_frequency(taken, meter, "frequency_hz", None)
    assert taken == [(49.99, 231.0), (49.99, None)]
    places = {point.id: index for index, point in enumerate(meter.asset.points)}
    meter.qualities[places["voltage_l1_v"]] = Quality.BAD
    push_frequency(taken, meter, "frequency_hz", "voltage_l1_v")
    assert taken[-1] == (49.99, None), "a voltage that is not good is no voltage"
    meter.alive = False
    await meter.poll()
    push_frequency(taken, meter, "frequency_hz", "voltage_l1_v")
    push_frequency(taken, meter, "no_such_point", None)
    assert len(taken) == 3, "a frequency that is not good is none"
