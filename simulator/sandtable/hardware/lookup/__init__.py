"""How a device is found and put together from more than its own file: settings of a user, offers of price lists."""
